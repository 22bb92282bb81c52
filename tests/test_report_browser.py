"""The report in a browser, as a person uses it: scrolling, clicking, leafing through pictures."""

import time

import numpy as np
import pytest
from browser import NAMES, PROGRAM, tab

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
