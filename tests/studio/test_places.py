from urllib.parse import unquote

import pytest
from studios import client, make_run, photo, raw, studio

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
