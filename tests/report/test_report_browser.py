"""The report in a browser, as a person uses it: scrolling, clicking, leafing through pictures."""

import time

import numpy as np
import pytest
from browser import AXE, NAMES, PROGRAM, tab

from dreambooth_jax import report

pytestmark = pytest.mark.skipif(
    PROGRAM is None, reason=f"clicks in one of {', '.join(NAMES)}: none found"
)
COLOURS = [(200, 30, 40), (20, 160, 60), (30, 60, 210)]
DIALOG = "document.querySelector('dialog')"
SHOTS = "[...document.querySelectorAll('img.shot')]"


def button(label: str) -> str:
    return f"[...{DIALOG}.querySelectorAll('button')].find(b => b.textContent === '{label}')"


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1400, 1000)], ids=["phone", "screen"])
def test_a_click_enlarges_a_picture_and_leads_on(tmp_path, width, height):
    pictures = [np.full((8, 8, 3), colour, np.uint8) for colour in COLOURS]
    sections = [
        report.Gallery("Photos", "", pictures, ["first", "second", "third"]),
        report.Curves("Loss", "", {"subject": [(0, 1.0), (1, 0.5)]}),
        report.Text("Long", "words " * 3000),
        report.Table("Settings", "", [("seed", "0")], collapsed=True),
    ]
    page = tmp_path / "report.html"
    report.build(page, title="A run", subtitle="zib", facts=[("steps", "1")], sections=sections)
    with tab(tmp_path / "profile") as browser:
        browser.open(page, width, height)

        def shows(colour: tuple[int, ...]) -> None:
            """The enlarged picture has this colour in its middle, once it is drawn."""
            box = browser.value(f"{DIALOG}.querySelector('img').getBoundingClientRect().toJSON()")
            assert box["width"] > 200, box
            row, column = (int(box[a] + box[s] / 2) for a, s in (("y", "height"), ("x", "width")))
            stop = time.monotonic() + 30
            while (seen := browser.screenshot())[row, column].tolist() != list(colour):
                assert time.monotonic() < stop, (seen[row, column], colour)
            assert seen.shape == (height, width, 3)

        assert browser.value(f"{SHOTS}.length") == len(pictures)
        assert not browser.value(f"{DIALOG}.open")
        browser.click(f"{SHOTS}[0]")
        browser.until(f"{DIALOG}.open")
        shows(COLOURS[0])
        assert browser.value(f"{DIALOG}.querySelector('p').textContent") == "first"
        browser.click(button("Next"))
        shows(COLOURS[1])
        browser.press("ArrowRight", 39)
        shows(COLOURS[2])
        browser.press("ArrowRight", 39)  # from the last to the first
        shows(COLOURS[0])
        browser.click(button("Previous"))
        shows(COLOURS[2])
        browser.click(button("Close"))
        browser.until(f"!{DIALOG}.open")
        browser.until(f"document.activeElement === {SHOTS}[2]")

        table = "document.querySelector('details')"
        assert not browser.value(f"{table}.open")
        browser.click(f"{table}.querySelector('summary')")
        browser.until(f"{table}.open && {table}.querySelector('td').checkVisibility()")

        browser.click("[...document.querySelectorAll('nav a')].find(a => a.textContent === 'Loss')")
        browser.until(
            "(top => 0 <= top && top < innerHeight / 2)"
            "(document.querySelector('section:nth-of-type(2)').getBoundingClientRect().top)"
        )
        browser.until("document.querySelector('nav a[aria-current]')?.textContent === 'Loss'")
    asked = {
        event["params"]["request"]["url"].split(":")[0]
        for event in browser.told
        if event["method"] == "Network.requestWillBeSent"
    }
    assert asked <= {"file", "data", "about"}
    complaints = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded")
    assert not [event for event in browser.told if event["method"] in complaints]


@pytest.mark.skipif(AXE is None, reason="pip install axe-core-python, which brings axe.min.js")
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 900)], ids=["phone", "screen"])
def test_a_slider_goes_over_the_steps_and_no_rule_of_access_is_broken(tmp_path, width, height):
    steps = ["before", "after 100 steps", "after"]
    cells = [[[np.full((8, 8, 3), colour, np.uint8)] for colour in COLOURS]] * 2
    photo = [np.full((8, 8, 3), 90, np.uint8)]
    sections = [
        report.Comparison("Over", "", ["a zib", "a bird"], steps, cells, [photo, []], slider=True),
        report.Table("Step", "", [("1", "2")], ("step", "loss"), command="python -m x --y='1 2'"),
        report.Gallery("Folded", "", photo, collapsed=True),
    ]
    page = tmp_path / "report.html"
    an_hour_ago = report.State("running", "Running: step 3.", time.time() - 3600)
    own = {"title": "A run", "subtitle": "zib", "facts": [("steps", "1")], "sections": sections}
    report.build(page, **own, state=an_hour_ago)
    visible = (
        "[...document.querySelectorAll('figure.column')].filter(f => f.checkVisibility())"
        ".map(f => f.querySelector('figcaption').textContent)"
    )
    with tab(tmp_path / "profile") as browser:
        browser.call(
            "Emulation.setEmulatedMedia",
            features=[
                {"name": "prefers-color-scheme", "value": "dark" if width < 500 else "light"}
            ],
        )
        browser.open(page, width, height)
        told = browser.value("document.getElementById('state').textContent")
        assert told == "Running: step 3. This page is 60 minutes old: the run may have ended."
        assert browser.value(visible) == ["after", "after"]
        browser.value("document.querySelector('input[type=range]').focus()")
        browser.press("ArrowLeft", 37)
        browser.until(f"{visible}.join() === 'after 100 steps,after 100 steps'")
        assert browser.value("document.querySelector('output').textContent") == "after 100 steps"
        browser.click("document.querySelector('.film-bar button')")
        browser.until(f"{visible}.length === 6")
        assert not browser.value("document.documentElement.scrollWidth > innerWidth")
        assert browser.violations() == []
        assert not browser.value("document.querySelector('details').open")
        browser.click("[...document.querySelectorAll('nav a')].find(a => a.hash === '#folded')")
        browser.until("document.querySelector('details').open")
        assert browser.violations() == []


def test_what_a_page_says_of_the_run_can_be_changed_alone(tmp_path):
    page, at = tmp_path / "report.html", time.time()
    assert not report.is_final(page)
    own = {"title": "A run", "subtitle": "", "facts": [], "sections": []}
    report.build(page, **own, state=report.State("running", "Running: 1 of 2.", at))
    before = page.read_text()
    assert not report.is_final(page) and "Running: 1 of 2." in before
    report.restate(page, report.State("failed", r"Failed: 1 < 2 & \1.", at))
    after = page.read_text()
    assert not report.is_final(page)
    assert "Failed: 1 &lt; 2 &amp; \\1." in after and "Running:" not in after
    assert before.splitlines()[-5:] == after.splitlines()[-5:]
    report.restate(page, report.State("finished", "Finished.", at))
    assert report.is_final(page)
    page.write_text("<!doctype html><title>of an earlier version, without a state</title>")
    assert report.is_final(page)
