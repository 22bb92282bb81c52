"""An export taken away through the page: nothing but what an export writes, to whom it is told."""

import re

import pytest
from studios import LIBRARY, client, make_run, studio


@pytest.fixture
def own(tmp_path):
    make_run(tmp_path / "runs" / "bird", status={"state": "finished"})
    return studio(tmp_path / "runs")


@pytest.mark.parametrize("place", ["README.md", "unet", "."])
def test_a_link_out_of_an_export_is_refused_by_name(own, tmp_path, place):
    folder = own.places.run("bird") / "export"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "config.json").write_text("secret")
    if place == ".":
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir()
        (folder / "model_index.json").write_text('{"unet": ["diffusers", "X"]}')
        target = tmp_path / "elsewhere" / ("config.json" if "." in place else "")
        (folder / place).symlink_to(target)
    browser = client(own)
    answer = browser.get("/run/bird/export.zip")
    assert answer.status_code == 400 and "secret" not in answer.text
    named = {".": "export/", "unet": "unet/"}.get(place, place)
    assert f"{named}: a link to what is not of the export" in answer.text
    assert "a link to what is not of the export" in browser.get("/run/bird/take").text


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_an_export_with_a_damaged_index_is_told_on_its_page(own, text):
    folder = own.places.run("bird") / "export"
    folder.mkdir()
    (folder / "model_index.json").write_text(text)
    page = client(own).get("/run/bird/take")
    assert page.status_code == 200 and "model_index.json" in page.text
    assert "Export again" in page.text
    assert client(own).get("/run/bird/export.zip").status_code == 400


@pytest.fixture
def pushing(own, monkeypatch):
    keys = ("export.push_to_hub", "export.private")
    rows = [{"key": key, "default": "", "meaning": "", "values": ""} for key in keys]
    monkeypatch.setitem(LIBRARY, "modes", LIBRARY["modes"] | {"push": ""})
    monkeypatch.setitem(LIBRARY, "settings", LIBRARY["settings"] + rows)
    return own


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, ("True", "its owner alone")),  # a run of an earlier version: private is the default
        ({"export": {"private": True}}, ("True", "its owner alone")),
        ({"export": {"private": False}}, ("False", "everybody")),
    ],
)
def test_a_push_does_what_the_page_told(pushing, settings, told):
    make_run(pushing.places.root / "bird", settings=settings)
    browser = client(pushing)
    page = browser.get("/run/bird/take").text
    assert "it is private" not in page
    push = page[page.index("Push to the hub") :]
    (chosen,) = re.findall(r'<option value="(\w+)" selected>([^<]+)<', push)
    assert chosen == told
    sent = {"repo": " me/bird ", "private": chosen[0], "action": "queue"}
    assert browser.post("/run/bird/push", data=sent).is_redirect
    (job,) = pushing.jobs.all()
    assert job.arguments[2:] == (
        "--mode=push",
        "--config.export.push_to_hub=me/bird",
        f"--config.export.private={chosen[0]}",
    )


@pytest.mark.parametrize("private", [None, "", "no"])
def test_a_push_that_does_not_tell_who_may_see_it_is_refused(pushing, private):
    sent = {"repo": "me/bird", "action": "queue"} | ({"private": private} if private else {})
    answer = client(pushing).post("/run/bird/push", data=sent)
    assert answer.status_code == 400 and "expected True or False" in answer.text
    assert pushing.jobs.all() == []
