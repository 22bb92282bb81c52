"""Pictures of the studio's pages: each is there, of its size, and none is an error."""

import sys
from pathlib import Path

import numpy as np
import pytest
from browser import PROGRAM, tab

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))  # tools are scripts, not a package

import page_pictures

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs a Chromium: none found")
DEMO = Path(page_pictures.dreambooth_jax.__file__).parent / "assets" / "studio_demo"


def test_every_page_of_the_docs_has_its_picture(tmp_path):
    pytest.importorskip("starlette", reason="the studio is an extra")
    page_pictures.prepared(DEMO, tmp_path / "runs")
    with tab(tmp_path / "profile") as browser:
        found = page_pictures.of_studio(browser, tmp_path / "runs")
    docs = Path(__file__).parents[2] / "docs"
    assert {f"{name}.jpg" for name in found} == {file.name for file in docs.glob("studio_*.jpg")}
    assert found["studio_run"].size == (960, 885)
    for name, picture in found.items():
        assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 100, name
    assert np.median(np.asarray(found["studio_new"])) > 200
    assert np.median(np.asarray(found["studio_compare"])) < 60


def test_a_page_that_is_not_there_ends_it(tmp_path):
    pytest.importorskip("starlette", reason="the studio is an extra")
    page_pictures.prepared(DEMO, tmp_path / "runs")
    with (
        tab(tmp_path / "profile") as browser,
        page_pictures.studio(browser, tmp_path / "runs") as address,
        pytest.raises(SystemExit, match="/run/none answered 404; expected 200"),
    ):
        page_pictures.show(browser, f"{address}/run/none", width=400, height=300)
