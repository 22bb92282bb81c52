"""Edits of photos through the page: the command that is started, the folder of the photos."""

import pytest
from studios import LIBRARY, client, make_run, photo, studio

KEYS = ("edit.images", "edit.masks", "edit.prompts", "edit.num_images", "edit.outside")


@pytest.fixture
def own(tmp_path, monkeypatch):
    make_run(tmp_path / "runs" / "bird", status={"state": "finished"})
    rows = [{"key": key, "default": "", "meaning": "", "values": ""} for key in KEYS]
    monkeypatch.setitem(LIBRARY, "modes", LIBRARY["modes"] | {"edit": ""})
    monkeypatch.setitem(LIBRARY, "settings", LIBRARY["settings"] + rows)
    return studio(tmp_path / "runs")


def test_photos_are_edited_with_the_weights_that_were_chosen(own):
    folder = own.places.run("bird")
    for stage, step in (("base", "4"), ("upscaler", "2")):
        (folder / "checkpoints" / stage / step).mkdir(parents=True)
    browser = client(own)
    page = browser.get("/run/bird/edit").text
    browser.post("/new/edits-of-bird/photos", files={"photo": ("a.jpg", photo(), "image/jpeg")})
    assert 'name="restore.base"' in page and 'name="restore.upscaler"' in page
    sent = {"prompts": "a {subject}", "masks": "none", "action": "queue"}
    sent |= {"restore.base": "4", "restore.upscaler": "0"}
    assert browser.post("/run/bird/edit", data=sent).is_redirect
    (job,) = own.jobs.all()
    assert job.arguments[2] == "--mode=edit"
    assert job.arguments[-2:] == ("--config.restore.base=4", "--config.restore.upscaler=0")
