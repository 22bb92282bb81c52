"""Runs in a bucket: the pages read them there."""

import zipfile
from io import BytesIO
from pathlib import Path

import buckets
import pytest
from studios import LIBRARY, client, make_run

from dreambooth_jax import files
from dreambooth_jax.studio.answers import Studio
from dreambooth_jax.studio.places import Places

pytest.importorskip("gcsfs", reason="reads the bucket")


def test_pages_of_runs_in_a_bucket(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    made = make_run(tmp_path / "bird", status={"state": "finished"})
    (made / "report.html").write_text("<p>a report</p>")
    (made / "export").mkdir()
    (made / "export" / "model_index.json").write_text("{}")
    (made / "log.txt").write_text("the log\n")
    with buckets.emulated() as bucket:
        files.send(made, files.at(f"{bucket}/runs/bird"))
        places = Places.at(f"{bucket}/runs")
        assert places.runs() == ["bird"] and not files.is_remote(places.state)
        own = Studio.over(places)
        own.library._found = LIBRARY
        browser = client(own)
        assert "finished" in browser.get("/").text
        page = browser.get("/run/bird").text
        assert "base, after 2 steps" in page and "the log" in page and "loss on photos" in page
        for name in ("try", "take", "live", "report"):
            assert browser.get(f"/run/bird/{name}").status_code == 200, name
        picture = browser.get("/run/bird/picture/after/00_00.png?small=1")
        assert picture.headers["content-type"] == "image/webp"
        with zipfile.ZipFile(BytesIO(browser.get("/run/bird/export.zip").content)) as archive:
            assert archive.read("bird/model_index.json") == b"{}"
        assert browser.get("/run/bird/picture/..%2f..%2fx/00_00.png").status_code == 404
