"""Edits of photos through the page: the command that is started, the folder of the photos."""

import pytest
from studios import LIBRARY, client, make_run, photo, studio

from dreambooth_jax.studio import editing

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


@pytest.mark.parametrize(
    "names",
    [
        ("sdxl-猫", "sdxl-犬"),
        ("a b", "a_b", "a<b", "a  b"),
        ("x" * 55, "x" * 56, "x" * 54 + "y", "x" * 200),
        ("é", "e\u0301"),  # composed and not
        ("\udcff", "\udcfe", "_"),  # names that are no UTF-8
    ],
)
def test_each_run_has_a_folder_of_its_own(own, names):
    folders = [editing.folder_of(name) for name in names]
    assert len(set(folders)) == len(names)
    for name, folder in zip(names, folders, strict=True):
        assert own.places.new_subject(folder).name == folder  # a name that serves
        assert folder == editing.folder_of(name)


@pytest.mark.parametrize("name", ["bird", "duck-2", "a_b", "v1.5", "x" * 55])
def test_a_name_that_serves_is_taken_as_it_is(name):
    assert editing.folder_of(name) == f"edits-of-{name}"


def test_photos_of_one_run_are_not_those_of_another(own):
    browser = client(own)
    for name in ("a b", "a_b"):
        make_run(own.places.root / name)
        assert browser.get(f"/run/{name}/edit").status_code == 200
    place = editing.folder_of("a b")
    sent = {"photo": ("a.jpg", photo(), "image/jpeg")}
    added = browser.post(f"/new/{place}/photos", files=sent)
    assert added.headers["location"] == "/run/a%20b/edit"
    assert "photo_01.jpg" in browser.get("/run/a b/edit").text
    assert "photo_01.jpg" not in browser.get("/run/a_b/edit").text
