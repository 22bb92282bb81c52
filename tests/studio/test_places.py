import errno
import os
import time
from pathlib import Path
from urllib.parse import unquote

import pytest
from studios import client, make_run, photo, raw, studio

from dreambooth_jax.studio import commands
from dreambooth_jax.studio.places import MissingError, Places, RefusedError

UP = [
    "..",
    "%2e%2e",
    "..%2f..",
    "%2e%2e%2fetc",
    "....//",
    "..\\",
    "%5c..",
    "/etc",
    "%00",
    ".studio",
]


@pytest.fixture
def own(tmp_path):
    root = tmp_path / "runs"
    make_run(root / "bird")
    (tmp_path / "secret.png").write_bytes(photo(kind="PNG"))
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "config.json").write_text("{}")
    return studio(root)


@pytest.mark.parametrize("name", UP)
def test_no_name_leads_out_of_the_folder(own, name):
    browser = client(own)
    for address in (
        f"/run/{name}",
        f"/run/{name}/report",
        f"/run/bird/picture/{name}/00_00.png",
        f"/run/bird/picture/after/{name}",
        f"/run/bird/picture/after/{name}.png",
        f"/run/bird/picture/{name}/secret.png",
        f"/new/{name}",
        f"/photos/{name}/secret.png",
        f"/photos/bird/{name}",
        f"/queue/{name}",
        f"/assets/{name}",
    ):
        for path in (address, unquote(address)):
            status, content = raw(browser, path)
            assert status in (400, 404), (path, status)
            assert b"PNG" not in content


def test_links_out_of_the_folder_are_not_followed(own, tmp_path):
    root = own.places.root
    (root / "link").symlink_to(tmp_path / "outside")
    (root / "bird" / "samples" / "away").symlink_to(tmp_path)
    (root / "bird" / "samples" / "after" / "01_00.png").unlink()
    (root / "bird" / "samples" / "after" / "01_00.png").symlink_to(tmp_path / "secret.png")
    (root / "bird" / "report.html").symlink_to(tmp_path / "outside" / "config.json")
    browser = client(own)
    assert own.places.runs() == ["bird"]
    for address in (
        "/run/link",
        "/run/bird/report",
        "/run/bird/picture/away/secret.png",
        "/run/bird/picture/after/01_00.png",
    ):
        assert browser.get(address).status_code == 404, address
    assert browser.get("/run/bird/picture/after/00_00.png").status_code == 200


def test_only_pictures_of_a_run_are_given_out(own):
    folder = own.places.run("bird")
    (folder / "samples" / "after" / "notes.txt").write_text("x")
    browser = client(own)
    assert browser.get("/run/bird/picture/after/notes.txt").status_code == 404
    assert browser.get("/run/bird/config.json").status_code == 404


def test_a_folder_without_a_record_is_no_run(tmp_path):
    (tmp_path / "photos" / "duck").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    make_run(tmp_path / "bird")
    places = Places.at(str(tmp_path))
    assert places.runs() == ["bird"]
    with pytest.raises(MissingError, match="no run 'empty'"):
        places.run("empty")
    with pytest.raises(RefusedError, match=f"Write {tmp_path}"):
        Places.at(str(tmp_path / "bird"))


@pytest.mark.parametrize("name", ["", "..", "a/b", "a b", "-x", ".x", "x" * 65, "a\n", "é"])
def test_new_folders_have_plain_names(tmp_path, name):
    places = Places.at(str(tmp_path))
    for make in (places.new_run, places.new_subject):
        with pytest.raises(RefusedError, match="letters, digits"):
            make(name)


def test_a_name_that_is_taken_is_refused(own):
    for name in ("bird", "photos"):
        with pytest.raises(RefusedError, match="another name"):
            own.places.new_run(name)


@pytest.fixture
def closed(monkeypatch):
    """Makes folders of another user, as the system tells them: root's own tests see all."""
    shut: dict[Path, int] = {}
    stat, scan = os.stat, os.listdir

    def refuse(path, *, itself):
        if not isinstance(path, str | os.PathLike):
            return
        for folder, code in shut.items():
            if folder in Path(path).parents or (itself and folder == Path(path)):
                raise OSError(code, os.strerror(code), os.fspath(path))

    def looked(path, *args, **how):
        refuse(path, itself=False)
        return stat(path, *args, **how)

    def listed(path="."):
        refuse(path, itself=True)
        return scan(path)

    monkeypatch.setattr(os, "stat", looked)
    monkeypatch.setattr(os, "listdir", listed)
    return shut


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.ESTALE, errno.EIO])
def test_a_folder_that_cannot_be_looked_into_is_left_out(own, closed, monkeypatch, code):
    """The page of the others is there, and the queue goes on."""
    root = own.places.root
    make_run(root / "theirs")
    closed[root / "theirs"] = code
    with pytest.raises(OSError, match="theirs"):
        (root / "theirs" / "config.json").stat()
    browser = client(own)
    assert own.places.runs() == ["bird"]
    assert browser.get("/").status_code == 200 and browser.get("/live").status_code == 200
    assert browser.get("/run/theirs").status_code == 404
    with pytest.raises(MissingError, match="no run 'theirs'"):
        own.places.run("theirs")
    monkeypatch.setattr(commands, "words", lambda: ["true"])
    own.jobs.add("bird", "train", [], queued=True)
    until = time.monotonic() + 30
    while own.jobs.all()[0].state != "ended":
        own.jobs.tick()
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("inner", ["samples", "samples/after", "checkpoints", "checkpoints/base"])
def test_a_folder_of_a_run_that_cannot_be_looked_into_is_an_empty_one(own, closed, inner):
    folder = own.places.run("bird")
    (folder / "checkpoints" / "base" / "4").mkdir(parents=True)
    closed[folder / inner] = errno.EACCES
    browser = client(own)
    for address in ("/", "/run/bird", "/run/bird/try", "/compare?a=bird"):
        assert browser.get(address).status_code == 200, address


def test_a_name_longer_than_any_files_is_no_run(own):
    with pytest.raises(MissingError, match="no run"):
        own.places.run("猫" * 200)  # 600 bytes
