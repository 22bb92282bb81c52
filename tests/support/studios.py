"""A studio over made folders of runs, and a client of it, for tests of the pages."""

import asyncio
import io
import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin
from starlette.testclient import TestClient

from dreambooth_jax.studio.answers import Studio
from dreambooth_jax.studio.places import Places
from dreambooth_jax.studio.server import application

TOKEN = "token-of-a-test-0123456789"
HOST = "http://localhost:8765"
# What `settings.describe` tells, in short.
LIBRARY: dict[str, Any] = {
    "configs": {
        "small": {
            "file": "configs/small.py",
            "summary": "A small <model>",
            "size": 64,
            "values": {"base_model": "embedded", "train.batch_size": 8, "adapt.name": "full"},
        }
    },
    "settings": [
        {"key": key, "default": None, "meaning": "means & does", "values": ""}
        for key in (
            "subject.images subject.class_noun subject.identifier subject.captions subject.masks "
            "train.num_steps train.batch_size sample.prompts sample.num_images adapt.name "
            "sampler.num_steps sampler.guidance_scale restore.base restore.upscaler export.dtype "
            "export.single_file compile.cache_dir"
        ).split()
    ],
    "modes": {"train": "", "sample": "", "export": ""},
    "of_run": "configs/of_run.py",
}


def studio(root: Path) -> Studio:
    """A studio that knows `LIBRARY`, and finds no fault with any settings."""
    found = Studio.over(Places.at(str(root)))
    found.library._found = LIBRARY
    found.library.check = lambda arguments: {  # type: ignore[method-assign]  # no child process
        "problem": "", "steps": {"base": 100}, "size": 64,
        "values": LIBRARY["configs"]["small"]["values"],
    }  # fmt: skip
    return found


def client(found: Studio, *, known: bool = True, **how: Any) -> TestClient:
    """A browser at a studio, which has opened the printed address unless it is not `known`."""
    app = application(found, token=TOKEN)
    browser = TestClient(app, base_url=HOST, follow_redirects=False, **how)
    if known:
        assert browser.get(f"/?token={TOKEN}").status_code == 303
        browser.headers["origin"] = HOST
    return browser


def raw(browser: TestClient, path: str) -> tuple[int, bytes]:
    """Status and content of a path as it is, which a browser would have made shorter before."""
    told: list[dict[str, Any]] = []
    cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    scope = {
        "type": "http", "method": "GET", "path": path, "query_string": b"", "scheme": "http",
        "headers": [(b"host", b"localhost:8765"), (b"cookie", cookie.encode())],
        "server": ("localhost", 8765), "client": ("127.0.0.1", 1), "http_version": "1.1",
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        told.append(message)

    asyncio.run(browser.app(scope, receive, send))  # type: ignore[arg-type]  # plain dictionaries
    content = b"".join(message.get("body", b"") for message in told)
    return told[0]["status"], content


def make_run(
    folder: Path,
    *,
    status: dict[str, Any] | None = None,
    steps: int = 4,
    grids: tuple[str, ...] = ("before", "base-000002", "after"),
    settings: dict[str, Any] | None = None,
) -> Path:
    """A folder as a run leaves it, with pictures of one colour each."""
    folder.mkdir(parents=True, exist_ok=True)
    flat = {"base_model": "embedded", "seed": 0, "subject": {"class_noun": "bird"}}
    flat |= {"train": {"num_steps": steps, "batch_size": 8}, "adapt": {"name": "full"}}
    (folder / "config.json").write_text(json.dumps(flat | (settings or {})))
    names = [{"identifier": "zib", "class_noun": "bird"}]
    (folder / "subjects.json").write_text(json.dumps({"subjects": names, "chosen_by": []}))
    lines = [
        {
            "step": step,
            "base/loss": 1 / step,
            "base/loss/subject": 0.5 / step,
            "base/loss/prior": 0.25,
            "base/held_out/subject": 0.125,
            "base/seconds_per_step": 9.0 if step == 1 else 0.5,
        }
        for step in range(1, steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for k, label in enumerate(grids):
        for p, prompt in enumerate(("a zib bird", "a bird <b>")):
            about = {"prompt": prompt, "seed": 7, "weights": label}
            note = PngImagePlugin.PngInfo()
            note.add_text("dreambooth_jax", json.dumps(about))
            file = folder / "samples" / label / f"{p:02d}_00.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            colour = np.full((16, 16, 3), 40 * k + 10 * p, np.uint8)
            Image.fromarray(colour).save(file, pnginfo=note)
    if status is not None:
        now = {"version": 1, "mode": "train", "stage": "base", "part": "training of the base"}
        now |= {
            "part_number": 2,
            "parts": 5,
            "step": None,
            "steps": None,
            "message": "",
            "loss": None,
        }
        now |= {"seconds_per_step": None, "seconds_left": None, "started": 1.0}
        now |= {"pid": os.getpid(), "host": socket.gethostname(), "updated": time.time()}
        (folder / "status.json").write_text(json.dumps(now | status))
    return folder


def runs_steps(folder: Path) -> int:
    """The steps that a made run has written."""
    file = folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.is_file() else 0


def photo(width: int = 96, height: int = 64, *, kind: str = "JPEG", **options: Any) -> bytes:
    """The bytes of a photo with a gradient in it."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind, **options)
    return buffer.getvalue()
