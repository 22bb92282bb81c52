"""Names of the modules that tests import by a path: scripts, and what tests have in common."""

import collections
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_scripts_and_what_tests_share_have_different_names():
    """Tests of scripts put a folder first on the path, where a module hides one of its name."""
    folders = (ROOT / "tests" / "support", ROOT / "tools", ROOT / "bench")
    names = collections.Counter(file.name for folder in folders for file in folder.glob("*.py"))
    assert len(names) > 60
    assert [name for name, count in names.items() if count > 1] == []
