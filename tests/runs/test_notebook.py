"""docs/quickstart.ipynb: sound, without outputs, and run cell by cell in a smoke run."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import commands
import pytest

from dreambooth_jax import config

COMMAND = f"{sys.executable} -c 'from dreambooth_jax.console import main; main()'"


@pytest.fixture(scope="module")
def cells() -> list[dict]:
    file = Path(__file__).parents[2] / "docs" / "quickstart.ipynb"
    notebook = json.loads(file.read_text())
    assert notebook["nbformat"] == 4
    return notebook["cells"]


def sources(cells: list[dict]) -> list[str]:
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_it_is_sound_and_holds_no_outputs(cells):
    assert len({cell["id"] for cell in cells}) == len(cells)
    for cell in cells:
        assert cell["cell_type"] in ("code", "markdown")
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
    for source in sources(cells):
        if not source.startswith("!"):
            ast.parse(source)
            assert "import jax" not in source  # the TPU is the training's own


def test_its_settings_and_configuration_exist(cells):
    text = "\n".join(sources(cells))
    keys = set(re.findall(r"--config\.([\w.]+)=", text))
    assert len(keys) > 4 and keys <= config.flatten(config.base_config()).keys()
    (named,) = re.findall(r'^CONFIG = "(\w+)', text, re.MULTILINE)
    assert named in config.library.files()


@pytest.mark.long
def test_its_cells_run(cells, tmp_path, tmp_path_factory, monkeypatch):
    """On a tiny cascade and the embedded photos, with the shell's lines as processes."""
    shown = []
    page = types.ModuleType("IPython.display")
    page.HTML, page.Image = (lambda x: ("html", x)), (lambda x: ("png", x))
    page.display = shown.append
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", page)
    monkeypatch.chdir(tmp_path)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    scope: dict = {}
    own = {"CONFIG": "imagen_like:smoke", "PHOTOS": "embedded", "CLASS_NOUN": "bird"}
    short = commands.flags(commands.cascade(tmp_path_factory), tmp_path)
    own["MORE"] = shlex.join(word for word in short if word.startswith("--config."))
    for source in sources(cells):
        if source.startswith("!pip"):
            continue
        if not source.startswith("!"):
            exec(compile(source, "cell", "exec"), scope)
            scope |= own if "SOURCE" in source else {}
            continue
        line = source[1:].replace("dreambooth-jax", COMMAND, 1)
        for name in re.findall(r"\{([A-Z_]+)\}", line):
            line = line.replace(f"{{{name}}}", str(scope[name]))
        subprocess.run(line, shell=True, check=True, env=environment, cwd=tmp_path)
    assert (tmp_path / "runs" / "bird" / "report.html").is_file()
    kinds = [kind for kind, _ in shown]
    assert kinds == ["html", "png"] and "srcdoc" in shown[0][1]
    assert Path(shown[1][1]).parent.name.startswith("base-")
