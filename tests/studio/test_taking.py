"""An export taken away through the page: nothing but what an export writes."""

import pytest
from studios import client, make_run, studio


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
