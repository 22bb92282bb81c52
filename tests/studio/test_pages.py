"""Pages as a browser without scripts gets them, and what their forms do."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from html.parser import HTMLParser

import pytest
from studios import HOST, LIBRARY, client, make_run, photo, studio

from dreambooth_jax.studio import commands

WAITS = "import sys, time; print('started', flush=True); time.sleep(60)"


class Reader(HTMLParser):
    """The text, the names of fields and the addresses of a page; complains about open elements."""

    VOID = frozenset("meta link input img br hr path".split())

    def __init__(self, text):
        super().__init__()
        self.open, self.fields, self.links, self.text, self.ids = [], {}, [], "", []
        self.feed(text)
        assert self.open == [], self.open
        assert len(self.ids) == len(set(self.ids)), self.ids

    def handle_starttag(self, tag, attrs):
        about = dict(attrs)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("input", "select", "textarea"):
            self.fields[about.get("name")] = about.get("value", "")
        self.links += [about[key] for key in ("href", "src", "action") if about.get(key)]
        self.ids += [about["id"]] if "id" in about else []
        assert "style" not in about and not any(key.startswith("on") for key in about)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def own(tmp_path):
    root = tmp_path / "runs"
    make_run(root / "bird", status={"state": "finished"})
    other = {"train": {"num_steps": 9, "batch_size": 8}}
    make_run(root / "duck <1>", settings=other, grids=("before",))
    return studio(root)


@pytest.fixture
def waiting(own, monkeypatch):
    """Commands wait, in the place of the main command."""
    monkeypatch.setattr(commands, "words", lambda: [sys.executable, "-c", WAITS])
    yield own
    for job in own.jobs.running():
        os.kill(job.pid, signal.SIGKILL)
        own.jobs._children[job.key].wait()


@pytest.mark.parametrize(
    "address",
    [
        "/", "/new", "/new/toy", "/queue", "/compare", "/compare?a=bird",
        "/compare?a=bird&b=duck+%3C1%3E&a_at=before", "/run/bird", "/run/duck%20%3C1%3E",
        "/run/bird/try", "/run/bird/take",
    ],
)  # fmt: skip
def test_pages_are_whole_and_lead_nowhere_else(own, address):
    own.places.new_subject("toy")
    browser = client(own)
    browser.post("/new/toy/photos", files={"photo": ("a.jpg", photo(), "image/jpeg")})
    answer = browser.get(address)
    assert answer.status_code == 200
    page = Reader(answer.text)
    assert all(link.startswith("/") or link in ("data:,", "#content") for link in page.links)
    for link in page.links:
        if re.match(r"/(run/[^/]+/picture|photos|assets)/", link):
            assert browser.get(link).status_code == 200, link


def test_words_of_others_are_text(own):
    page = client(own).get("/").text
    assert "duck &lt;1&gt;" in page and "duck <1>" not in page
    page = client(own).get("/run/bird").text
    assert "a bird &lt;b&gt;" in page and "bird <b>" not in page


def test_the_runs_with_their_states(own):
    text = Reader(client(own).get("/").text).text
    assert "2 runs" in text and "finished" in text and "stopped" in text
    assert "base: 4 of 9" in text  # of the run without a status: its metrics and settings
    assert "zib bird" in text


def test_only_what_changed_is_sent_again(own):
    browser = client(own)
    parts = browser.get("/run/bird/live").json()["parts"]
    assert parts.keys() == {"head", "pictures", "curves", "advice", "log"}
    seen = ",".join(f"{name}:{digest}" for name, (digest, _) in parts.items())
    assert browser.get("/run/bird/live", params={"seen": seen}).json()["parts"] == {}
    folder = own.places.run("bird")
    line = {"step": 5, "base/loss/subject": 0.0625, "base/loss/prior": 0.25}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    (folder / "log.txt").write_text("a line\n")
    again = browser.get("/run/bird/live", params={"seen": seen}).json()["parts"]
    assert again.keys() == {"curves", "log"}
    assert "0.0625" in again["curves"][1] and "a line" in again["log"][1]


def test_a_loss_is_called_held_out_only_where_photos_are(own, tmp_path):
    browser = client(own)
    assert "held-out" not in browser.get("/run/bird").text
    held = {"subject": {"class_noun": "bird", "held_out": 1}}
    make_run(own.places.root / "held", settings=held)
    assert "held-out loss on photos" in browser.get("/run/held").text


def test_pictures_and_thumbnails(own):
    browser = client(own)
    address = "/run/bird/picture/after/00_00.png"
    whole = browser.get(address)
    file = own.places.run("bird") / "samples" / "after" / "00_00.png"
    assert whole.content == file.read_bytes() and "immutable" in whole.headers["cache-control"]
    small = browser.get(address, params={"small": 1})
    assert small.headers["content-type"] == "image/webp"


def form(**changed):
    values = {"name": "toy-run", "class_noun": "toy", "identifier": "auto", "config": "small"}
    values |= {"captions": "prompt", "masks": "none", "steps": "70", "action": "check"}
    return values | changed


@pytest.fixture
def toy(waiting):
    waiting.places.new_subject("toy")
    browser = client(waiting)
    for k in range(3):
        sent = {"photo": (f"{k}.jpg", photo(96 + k), "image/jpeg")}
        assert browser.post("/new/toy/photos", files=sent).is_redirect
    return browser


def test_the_check_shows_the_exact_command(waiting, toy):
    page = Reader(
        toy.post("/new/toy", data=form(prompts="a {subject}\n\n b'c \n", more="# no\n")).text
    )
    root = waiting.places.root
    for word in (
        "--config=configs/small.py",
        f"--workdir={root / 'toy-run'}",
        f"--config.subject.images={root / 'photos' / 'toy'}",
        "--config.subject.class_noun=toy",
        "--config.train.num_steps=70",
    ):
        assert word in page.text
    assert "the settings fit" in page.text and "base 100" in page.text
    assert "70" in page.fields.values()  # what was written is kept
    # 100 steps of half a second, from the runs that are alike; the first step compiles.
    assert "base 50 s" in page.text
    assert not (root / "toy-run").exists() and waiting.jobs.all() == []


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"class_noun": " "}, "one noun"),
        ({"name": "../x"}, "expected a name"),
        ({"name": "bird"}, "there already"),
        ({"config": "../../evil"}, "no configuration"),
        ({"more": "train.num_steps"}, "key=value"),
        ({"more": "compile.cache_dir=x"}, "not a setting"),
        ({"more": "nonsense.key=1"}, "not a setting"),
        ({"masks": "files"}, "mask photo_01.mask.png is missing"),
        ({"captions": "files"}, "caption photo_01.txt is missing"),
        ({"captions": "evil"}, "expected prompt or files"),
    ],
)
@pytest.mark.parametrize("action", ["check", "start", "queue"])
def test_what_cannot_be_is_told_in_the_form(waiting, toy, changed, told, action):
    answer = toy.post("/new/toy", data=form(action=action) | changed)
    assert told in Reader(answer.text).text
    assert waiting.jobs.all() == [] and not (waiting.places.root / "toy-run").exists()


def test_a_problem_of_the_settings_starts_nothing(waiting, toy):
    waiting.library.check = lambda arguments: {"problem": "train.num_steps = -1: too few"}
    answer = toy.post("/new/toy", data=form(action="start"))
    assert "too few" in answer.text and waiting.jobs.all() == []


def test_a_run_is_started_watched_stopped_and_resumed(waiting, toy):
    answer = toy.post("/new/toy", data=form(action="start"))
    assert answer.headers["location"] == "/run/toy-run"
    page = Reader(toy.get("/run/toy-run").text)
    assert "starting" in page.text and "Stop and save" in page.text
    stop = time.monotonic() + 30
    while "started" not in Reader(toy.get("/run/toy-run").text).text:
        assert time.monotonic() < stop
        time.sleep(0.05)
    first = waiting.jobs.of("toy-run")[0]
    told = toy.post("/run/toy-run/stop", headers={"accept": "application/json"}).json()
    assert str(first.pid) in told["message"]
    waiting.jobs._children[first.key].wait(30)
    waiting.jobs.tick()
    assert "Stop and save" not in toy.get("/run/toy-run").text
    assert toy.post("/run/toy-run/resume").is_redirect
    again = waiting.jobs.of("toy-run")[0]
    assert again.state == "running" and again.arguments == first.arguments


def test_a_run_of_a_shell_is_resumed_by_its_own_settings(waiting):
    browser = client(waiting)
    assert browser.post("/run/duck <1>/resume", data={"action": "queue"}).is_redirect
    (job,) = waiting.jobs.all()
    folder = waiting.places.run("duck <1>")
    assert job.arguments[0] == f"--config=configs/of_run.py:{folder}" and job.state == "queued"
    assert "duck &lt;1&gt;" in browser.get("/queue").text
    assert browser.post("/queue/remove", data={"key": job.key}).is_redirect
    assert waiting.jobs.all() == []


def test_nothing_to_stop_is_told(own):
    answer = client(own).post("/run/bird/stop")
    assert answer.status_code == 400 and "Nothing works" in answer.text


def test_prompts_are_tried_with_chosen_weights(waiting):
    folder = waiting.places.run("bird")
    (folder / "checkpoints" / "base" / "4").mkdir(parents=True)
    browser = client(waiting)
    page = Reader(browser.get("/run/bird/try").text)
    assert "restore.base" in page.fields
    sent = {"prompts": "a {subject}\nb", "num_images": "3", "restore.base": "4", "guidance": ""}
    assert browser.post("/run/bird/try", data=sent | {"action": "start"}).is_redirect
    (job,) = waiting.jobs.all()
    assert job.arguments[2:] == (
        "--mode=sample",
        "--config.sample.prompts=('a {subject}', 'b')",
        "--config.sample.num_images=3",
        "--config.restore.base=4",
    )
    assert browser.post("/run/bird/try", data={"prompts": " "}).status_code == 400


def test_an_export_is_taken_away_as_a_zip(waiting, caplog):
    folder = waiting.places.run("bird")
    weights = "unet/diffusion_pytorch_model.safetensors"
    content = {weights: os.urandom(3 * 2**20 + 5)}
    content["model_index.json"] = b'{"unet": ["diffusers", "X"]}'
    for name, data in {**content, ".env": b"TOKEN=1", ".git/config": b"", "<b>.txt": b""}.items():
        (folder / "export" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "export" / name).write_bytes(data)
    (folder / "export" / "secret").symlink_to("/etc/hostname")
    browser = client(waiting)
    page = browser.get("/run/bird/take").text
    assert weights in page and "Left behind" in page and ".git/" in page and "<b>.txt" not in page
    answer = browser.get("/run/bird/export.zip")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        found = {name: archive.read(name) for name in archive.namelist()}
    assert found == {f"bird/{name}": data for name, data in content.items()}
    (line,) = [each.getMessage() for each in caplog.records if "Left behind" in each.getMessage()]
    assert ".env, .git/, <b>.txt, secret" in line
    sent = {"dtype": "float32", "single_file": "", "action": "queue"}
    assert browser.post("/run/bird/take", data=sent).is_redirect
    (job,) = waiting.jobs.all()
    assert job.arguments[2:] == ("--mode=export", "--config.export.dtype=float32")
    assert browser.get("/run/duck <1>/export.zip").status_code == 404


def test_no_push_is_offered_without_the_mode(waiting):
    browser = client(waiting)
    assert "owner/name" not in browser.get("/run/bird/take").text
    assert browser.post("/run/bird/push", data={"repo": "me/bird"}).status_code == 404


def test_two_runs_side_by_side(own):
    browser = client(own)
    page = Reader(browser.get("/compare", params={"run": ["bird", "duck <1>"]}).text)
    assert "train.num_steps" in page.text and "seed" not in page.text
    assert "bird, after training" in page.text and "duck <1>, before training" in page.text
    assert browser.get("/compare", params={"run": ["bird"]}).status_code == 400
    assert browser.get("/compare", params={"a": "no", "b": "bird"}).status_code == 404


def test_the_edit_page_is_shown_where_the_mode_is(waiting, monkeypatch):
    browser = client(waiting)
    assert browser.get("/run/bird/edit").status_code == 404
    assert "/edit" not in browser.get("/run/bird").text
    monkeypatch.setitem(LIBRARY, "modes", LIBRARY["modes"] | {"edit": ""})
    keys = ("edit.images", "edit.masks", "edit.prompts", "edit.num_images", "edit.outside")
    rows = [{"key": key, "default": "", "meaning": "", "values": ""} for key in keys]
    monkeypatch.setitem(LIBRARY, "settings", LIBRARY["settings"] + rows)
    assert "/run/bird/edit" in browser.get("/run/bird").text
    Reader(browser.get("/run/bird/edit").text)
    sent = {"prompts": "a {subject}", "masks": "files", "num_images": "1", "action": "queue"}
    assert "Add a photo" in browser.post("/run/bird/edit", data=sent).text
    place = "edits-of-bird"
    added = browser.post(f"/new/{place}/photos", files={"photo": ("a.jpg", photo(), "image/jpeg")})
    assert added.headers["location"] == "/run/bird/edit"
    assert "no mask" in browser.post("/run/bird/edit", data=sent).text
    mask = browser.post(f"/new/{place}/photo_01.jpg/mask", content=photo(96, 64, kind="PNG"))
    assert mask.status_code == 200
    Reader(browser.get("/run/bird/edit").text)
    assert browser.post("/run/bird/edit", data=sent).is_redirect
    (job,) = waiting.jobs.all()
    folder = waiting.places.photos / place
    assert job.arguments[2:] == (
        "--mode=edit",
        f"--config.edit.images={folder}",
        "--config.edit.masks=files",
        "--config.edit.prompts=('a {subject}',)",
        "--config.edit.num_images=1",
    )
    assert place not in browser.get("/new").text


def test_a_forecast_is_asked_for_and_told(waiting, toy):
    assert "Choose the device" in toy.post("/new/toy", data=form(action="forecast")).text
    sent = form(action="forecast", topology="h100:8")
    assert "being made" in toy.post("/new/toy", data=sent).text
    (job,) = waiting.jobs.all()
    workdir = job.arguments[-3].removeprefix("--workdir=")
    assert job.arguments[-2:] == ("--mode=precompile", "--config.precompile.topology=h100:8")
    table = {"program": "base: train step", "fits": False, "memory": 3 * 2**30, "limit": 2 * 2**30}
    os.makedirs(workdir)
    with open(f"{workdir}/precompile.json", "w") as file:
        json.dump([table | {"least_seconds": 0.25}], file)
    text = toy.post("/new/toy", data=form()).text
    assert "8 H100: base: train step takes 3.0 GiB of 2 on each device: too much" in text


def test_the_server_never_imports_jax(tmp_path):
    """All modules of the studio, and every page of it, in a process of its own."""
    make_run(tmp_path / "runs" / "bird")
    program = f"""
import sys
sys.path[:0] = [{os.path.dirname(__import__("studios").__file__)!r}]
from studios import client, studio
import pathlib
browser = client(studio(pathlib.Path({str(tmp_path / "runs")!r})))
import dreambooth_jax.studio.__main__, dreambooth_jax.studio.serving
for address in "/ /run/bird /run/bird/try /run/bird/take /new /compare?a=bird&b=bird".split():
    assert browser.get(address).status_code == 200, address
print(sorted({{name.split(".")[0] for name in sys.modules}} & {{"jax", "jaxlib", "flax", "torch"}}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_a_failure_is_a_page_and_a_sentence_for_the_script(own, monkeypatch):
    monkeypatch.setattr(own.jobs, "all", lambda: 1 / 0)
    browser = client(own, raise_server_exceptions=False)
    answer = browser.get("/queue")
    assert answer.status_code == 500 and "ZeroDivisionError" in answer.text
    told = browser.get("/queue", headers={"accept": "application/json", "origin": HOST})
    assert told.json()["message"].startswith("ZeroDivisionError")
