"""The pictures of pages in docs/: the report and the studio, in a headless Chromium.

    python -m dreambooth_jax.main --config=configs/imagen_like.py --workdir=runs/bird
    python tools/page_pictures.py runs/bird docs

The studio shows a copy of the run, beside a folder of the package's photos, the first with its
mask: nothing is added to the run. Ends with status 1 if a page is not there.
"""

import argparse
import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from editing_pictures import BIRDS, outline
from PIL import Image

import dreambooth_jax

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))  # the browser

from browser import Tab, tab

WIDE, PHONE = 1280, 390  # pixels of a window
SCALE = 0.75  # of a picture, of its window
PHOTOS = "parrot"
# File of docs/ -> address in the studio, height of the window, color scheme.
SHOTS = {
    "studio_runs": ("/", 460, "light"),
    "studio_run": ("/run/bird", 1180, "light"),
    "studio_new": (f"/new/{PHOTOS}", 1300, "light"),
    "studio_compare": ("/compare?a=bird&b=bird&a_at=before&b_at=after", 900, "dark"),
    "studio_try": ("/run/bird/try", 640, "light"),
    "studio_edit": ("/run/bird/edit", 880, "light"),
    "studio_take": ("/run/bird/take", 880, "light"),
}


def show(browser: Tab, address: str, *, width: int, height: int, scheme: str = "light") -> None:
    """Opens a page in a window of this size and waits until its pictures are there."""
    browser.window(width, height, scheme)
    browser.call("Page.navigate", url=address)
    browser.until(
        f"location.href === {address!r} && document.readyState === 'complete' && "
        "[...document.images].every(image => image.complete || image.loading === 'lazy')"
    )
    status = browser.value("performance.getEntriesByType('navigation')[0].responseStatus")
    if status not in (0, 200):  # a file has none
        raise SystemExit(f"{address} answered {status}; expected 200.")
    time.sleep(0.5)  # what is drawn by a script


def picture(browser: Tab) -> Image.Image:
    """What is to be seen, made smaller."""
    whole = Image.fromarray(browser.screenshot())
    size = (round(whole.width * SCALE), round(whole.height * SCALE))
    return whole.resize(size, Image.Resampling.LANCZOS)


@contextlib.contextmanager
def studio(browser: Tab, runs: Path) -> Iterator[str]:
    """The address of a studio over `runs`, which the browser has entered."""
    command = [sys.executable, "-m", "dreambooth_jax.studio", str(runs), "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[-1]  # printed once it listens
            browser.call("Page.navigate", url=address)  # its token becomes a cookie
            browser.until("document.readyState === 'complete' && document.title !== ''")
            yield address.partition("/?")[0]
        finally:
            process.kill()  # it would wait for the browser to leave


def prepared(run: Path, runs: Path) -> None:
    """A folder of runs with a copy of the run, and photos of a new one."""
    shutil.copytree(run, runs / "bird", ignore=shutil.ignore_patterns("checkpoints"))
    photos = runs / "photos" / PHOTOS
    photos.mkdir(parents=True)
    own = Path(dreambooth_jax.__file__).parent / "assets" / "subject"
    for file in sorted(own.glob("*.png")):
        shutil.copy(file, photos)
    first = min(BIRDS)
    outline(*BIRDS[first], side=256).save(photos / f"{Path(first).stem}.mask.png")


def of_studio(browser: Tab, runs: Path) -> dict[str, Image.Image]:
    """The pictures of the studio by the file's name."""
    found = {}
    with studio(browser, runs) as address:
        for name, (path, height, scheme) in SHOTS.items():
            show(browser, address + path, width=WIDE, height=height, scheme=scheme)
            found[name] = picture(browser)
        show(browser, f"{address}/new/{PHOTOS}", width=934, height=766)
        browser.click("document.querySelector('button[data-mask]')")
        browser.until("!!document.querySelector('#brush').open")
        time.sleep(1)
        found["studio_mask"] = picture(browser)
        show(browser, f"{address}/run/bird", width=PHONE, height=1100, scheme="dark")
        found["studio_phone"] = picture(browser)
    return found


def of_report(browser: Tab, run: Path) -> Image.Image:
    """The report on a screen and on a phone, side by side."""
    sides = []
    for width in (WIDE, PHONE):
        report = (run / "report.html").resolve().as_uri()
        show(browser, report, width=width, height=900)
        sides.append(picture(browser))
    page = Image.new("RGB", (sides[0].width + 16 + sides[1].width, sides[0].height), "white")
    page.paste(sides[0], (0, 0))
    page.paste(sides[1], (sides[0].width + 16, 0))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a finished run of the main command")
    parser.add_argument("docs", type=Path, help="folder of the pictures")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        runs = Path(work) / "runs"
        prepared(args.run, runs)
        with tab(Path(work) / "profile") as browser:
            pictures = {"report": of_report(browser, args.run), **of_studio(browser, runs)}
    for name, one in pictures.items():
        one.save(args.docs / f"{name}.jpg", quality=88, optimize=True)
        print(f"{args.docs / name}.jpg: {one.width}×{one.height}")


if __name__ == "__main__":
    main()
