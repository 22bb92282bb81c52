"""The studio in a browser: photos dropped, a mask painted, a run started, watched, stopped."""

import contextlib
import importlib.util
import os
import signal
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import commands as runs_of_commands
import numpy as np
import pytest
import studio_program
import uvicorn
from browser import NAMES, PROGRAM, tab
from PIL import Image
from studios import TOKEN, make_run, photo, studio

from dreambooth_jax.studio import commands, runs
from dreambooth_jax.studio.answers import Studio
from dreambooth_jax.studio.places import Places
from dreambooth_jax.studio.server import application

pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason=f"clicks in one of {', '.join(NAMES)}: none found"
)
WIDTHS = {"phone": (390, 844), "screen": (1280, 900)}


class Person:
    """Someone at a browser that is open at a studio."""

    def __init__(self, browser, address):
        self.browser, self.address = browser, address

    def go(self, path, size="screen", scheme="light"):
        self.browser.window(*WIDTHS[size], scheme)
        self.follow(lambda: self.browser.call("Page.navigate", url=self.address + path))

    def follow(self, action):
        """Does something that leads to another page, or the same anew; waits until it is there."""
        self.browser.value("window.old = true")
        action()
        self.until("!window.old && document.readyState === 'complete'")

    def until(self, expression, seconds=60):
        stop = time.monotonic() + seconds
        while True:
            with contextlib.suppress(AssertionError):  # between two pages there is none
                if self.browser.value(expression):
                    return
            assert time.monotonic() < stop, (expression, self.text()[:3000])
            time.sleep(0.05)

    def text(self):
        return self.browser.value("document.body.innerText")

    def button(self, label):
        return (
            "[...document.querySelectorAll('button')]"
            f".find(b => b.textContent.trim() === '{label}' && b.checkVisibility())"
        )

    def press(self, label):
        self.until(f"!!{self.button(label)}")
        self.browser.click(self.button(label))

    def write(self, name, text):
        field = f"document.querySelector('main [name=\"{name}\"]')"
        self.browser.value(f"{field}.focus(); {field}.select && {field}.select()")
        self.browser.call("Input.insertText", text=text)

    def choose(self, name, value):
        self.browser.value(f"document.querySelector('[name=\"{name}\"]').value = '{value}'")

    def give(self, files):
        root = self.browser.call("DOM.getDocument")["root"]["nodeId"]
        node = self.browser.call("DOM.querySelector", nodeId=root, selector="#files")["nodeId"]
        paths = [str(path) for path in files]
        self.follow(lambda: self.browser.call("DOM.setFileInputFiles", nodeId=node, files=paths))

    def paint(self, size=70):
        """A stroke through the middle of the canvas."""
        self.browser.value(f"document.querySelector('#brush-size').value = {size}")
        box = self.browser.value(
            "document.querySelector('#brush canvas').getBoundingClientRect().toJSON()"
        )
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        for kind, dx in (("mousePressed", -9), ("mouseMoved", 0), ("mouseReleased", 9)):
            where = {"x": x + dx, "y": y, "button": "left", "buttons": 1, "clickCount": 1}
            self.browser.call("Input.dispatchMouseEvent", type=kind, **where)

    def complaints(self):
        """Violations of the rules of accessibility, and what is wider than the page."""
        spec = importlib.util.find_spec("axe_core_python")
        assert spec is not None and spec.origin is not None
        rules = (Path(spec.origin).parent / "axe.min.js").read_text()
        self.browser.value(f"{rules}; 1")
        told = "r.violations.map(v => v.id + ': ' + v.nodes.map(n => n.html).join(' '))"
        script = f"axe.run().then(r => r.passes.length < 10 ? ['not run'] : {told})"
        how = {"expression": script, "awaitPromise": True, "returnByValue": True}
        found = self.browser.call("Runtime.evaluate", **how)["result"]["value"]
        wide = self.browser.value("document.documentElement.scrollWidth - innerWidth")
        return [*found, *([f"{wide} pixels too wide"] if wide > 0 else [])]

    def outside(self):
        """Requests to others, and errors of scripts and policies."""
        own = urlsplit(self.address).netloc
        asked = [
            event["params"]["request"]["url"]
            for event in self.browser.told
            if event["method"] == "Network.requestWillBeSent"
        ]
        found = [a for a in asked if urlsplit(a).netloc != own and not a.startswith("data:")]
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded")
        found += [str(event) for event in self.browser.told if event["method"] in kinds]
        return [each for each in found if not each.startswith(("about:", "blob:"))]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A studio over one finished run, whose commands are `studio_program`."""
    support = Path(studio_program.__file__).parent
    monkeypatch.setenv("PYTHONPATH", f"{support}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    program = [sys.executable, "-m", "studio_program"]
    monkeypatch.setattr(commands, "words", lambda: program)
    make_run(tmp_path / "runs" / "bird", status={"state": "finished"}, steps=60)
    found = studio(tmp_path / "runs")
    yield found
    for job in found.jobs.running():
        os.kill(job.pid, signal.SIGKILL)
        found.jobs._children[job.key].wait()


@contextlib.contextmanager
def opened(own, profile):
    """Someone who has opened the printed address."""
    app = application(own, token=TOKEN)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    stop = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < stop
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with tab(profile) as browser:
            found = Person(browser, f"http://localhost:{port}")
            found.go(f"/?token={TOKEN}")
            yield found
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture
def person(own, tmp_path):
    with opened(own, tmp_path / "profile") as found:
        yield found


@pytest.mark.skipif(
    importlib.util.find_spec("axe_core_python") is None,
    reason="the rules of accessibility are those of axe-core-python: not installed",
)
def test_every_page_is_accessible_fits_and_asks_nobody_else(own, person):
    folder = own.places.new_subject("duck")
    for k in range(2):
        (folder / f"photo_0{k}.jpg").write_bytes(photo(96 + k))
    (folder / "small.jpg").write_bytes(photo(9, 9))
    make_run(own.places.root / "goose", grids=("before", "after"))
    own.jobs.add("goose", "train", ["--workdir=x"], queued=True)
    found = {}
    paths = "/ /new /new/duck /queue /compare?a=bird&b=goose /run/bird /run/bird/try /run/bird/take"
    for path in paths.split():
        for size in WIDTHS:
            for scheme in ("light", "dark"):
                person.go(path, size, scheme)
                if complaints := person.complaints():
                    found[path, size, scheme] = complaints
    assert found == {}
    assert person.outside() == []


def test_photos_to_a_run_that_is_watched_stopped_and_resumed(own, person, tmp_path):
    files = []
    for k in range(3):
        files.append(tmp_path / f"IMG {k}.jpg")
        files[-1].write_bytes(photo(120 + k, 90))
    person.go("/new")
    person.write("subject", "duck")
    person.follow(lambda: person.press("Continue"))
    person.write("class_noun", "toy")
    person.give(files)
    folder = own.places.subject("duck")
    names = [f"photo_0{k}.jpg" for k in (1, 2, 3)]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert person.browser.value("document.querySelector('[name=class_noun]').value") == "toy"

    for _ in names:
        person.press("Paint a mask")
        person.until("document.querySelector('#brush').open")
        person.paint()
        person.follow(lambda: person.press("Save the mask"))
    for name in names:
        mask = (
            np.asarray(Image.open(folder / name).convert("L")),
            np.asarray(Image.open(folder / f"{Path(name).stem}.mask.png")),
        )
        assert mask[0].shape == mask[1].shape
        height, width = mask[1].shape
        assert mask[1][height // 2, width // 2] == 255 and mask[1][2, 2] == 0

    person.choose("masks", "files")
    person.write("name", "duck-1")
    person.follow(lambda: person.press("Check"))
    assert "the settings fit" in person.text() and "--config.subject.masks=files" in person.text()
    person.follow(lambda: person.press("Start now"))
    person.until("document.body.innerText.includes('training the base')")
    person.until("document.querySelectorAll('.strip .shot').length >= 4")  # no page was reloaded
    person.until("Number(document.querySelector('.curves output').textContent) >= 4")
    assert person.browser.value("document.querySelectorAll('.moment:not([hidden])').length") == 1
    slider = "document.querySelector('#moment')"
    person.browser.value(
        f"{slider}.value = 0; {slider}.dispatchEvent(new Event('input', {{bubbles: true}}))"
    )
    assert person.browser.value("document.querySelector('output').textContent") == "before training"
    person.browser.click("document.querySelector('.moment:not([hidden]) .shot')")
    person.until("document.querySelector('#large').open")
    person.press("Close")

    person.press("Stop and save")
    person.until("document.body.innerText.includes('stopped')")
    person.until(f"!!{person.button('Continue')}")
    (first,) = own.jobs.of("duck-1")
    person.press("Continue")
    person.until(f"!!{person.button('Stop and save')}")
    assert len(own.jobs.of("duck-1")) == 2
    person.press("Stop and save")
    person.until(f"!!{person.button('Continue')}")
    assert first.arguments == own.jobs.of("duck-1")[0].arguments

    person.go("/")
    person.browser.value("document.querySelectorAll('[name=run]').forEach(box => box.checked = 1)")
    person.follow(lambda: person.press("Compare the two chosen"))
    assert "train.num_steps" in person.text()
    person.browser.click("document.querySelector('summary')")
    wipe = "document.querySelector('[data-wipe]')"
    person.browser.value(
        f"{wipe}.value = 40; {wipe}.dispatchEvent(new Event('input', {{bubbles: true}}))"
    )
    over = "document.querySelector('.wipe img + img').style.clipPath"
    assert "40%" in person.browser.value(over)
    assert person.outside() == []


SMALL = {  # of a run on the tiny cascade: enough steps to be stopped in
    "prior.num_images": 4, "prior.batch_size": 4, "sample.batch_size": 4, "sample.num_images": 1,
    "train.num_steps": 3000, "train.batch_size": 4, "train.checkpoint_every": 500,
    "train.sample_every": 200, "train.log_every": 5, "train.held_out_every": 0,
    "train.keep_weights_every": 0, "upscaler.num_steps": 2, "optim.warmup_steps": 1,
    "sampler.num_steps": 2, "sampler.upscaler_num_steps": 2, "evaluate.at_end": False,
    "sample.prompts": ("a {subject}", "a {class_noun}"), "export.dtype": "float32",
}  # fmt: skip


@pytest.mark.long
def test_a_whole_run_from_dropped_photos_to_a_zip(tmp_path, tmp_path_factory, monkeypatch):
    for name, value in runs_of_commands.simulated(1).items():
        monkeypatch.setenv(name, value)
    stages = runs_of_commands.cascade(tmp_path_factory)
    more = SMALL | {f"{kind}_model": folder for kind, folder in stages.items()}
    own = Studio.over(Places.at(str(tmp_path / "runs")))
    own.library.known()  # asked of a child process
    for k in range(3):
        (tmp_path / f"{k}.jpg").write_bytes(photo(40 + k, 32))
    with opened(own, tmp_path / "profile") as person:
        person.go("/new")
        person.write("subject", "duck")
        person.follow(lambda: person.press("Continue"))
        person.give([tmp_path / f"{k}.jpg" for k in range(3)])
        for _ in range(3):
            person.press("Paint a mask")
            person.until("document.querySelector('#brush').open")
            person.paint()
            person.follow(lambda: person.press("Save the mask"))
        person.write("class_noun", "toy")
        person.choose("config", "imagen_like")
        person.choose("masks", "files")
        lines = [f"{key}={value}" for key, value in more.items()]
        person.write("more", "\n".join(lines))
        person.follow(lambda: person.press("Start now"))
        text = person.text()
        assert "Stop and save" in text, text
        person.until("document.querySelectorAll('.shot').length > 0", 500)
        person.until("Number(document.querySelector('.curves output')?.textContent) > 5", 500)
        person.press("Stop and save")
        person.until(f"!!{person.button('Continue')}", 300)
        folder = own.places.run("duck")
        assert runs.state(folder).name == "stopped" and runs.steps_on_disk(folder)["base"]
        before = max(runs.steps_on_disk(folder)["base"])
        assert before < SMALL["train.num_steps"]
        person.press("Continue")
        person.until("document.body.innerText.includes('finished')", 800)
        assert max(runs.steps_on_disk(folder)["base"]) == SMALL["train.num_steps"]
        assert (folder / "report.html").is_file()

        person.go("/run/duck/try")
        person.write("prompts", "a {subject} on the moon")
        person.follow(lambda: person.press("Start now"))
        person.until("document.querySelectorAll('.gallery .shot').length > 0", 500)
        person.go("/run/duck/take")
        person.follow(lambda: person.press("Start now"))
        person.until("document.body.innerText.includes('export: done')", 500)
        assert "model_index.json" in person.text()
        assert person.outside() == []
