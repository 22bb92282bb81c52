"""Files appear whole or not at all; addresses that nobody can reach are told at once."""

from pathlib import Path
from unittest import mock

import buckets
import pytest

from dreambooth_jax import files


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "sub" / "a.json"
    files.write_text(file, "first")
    with pytest.raises(KeyError):
        buckets.break_off(file)
    assert file.read_text() == "first"
    assert [path.name for path in file.parent.iterdir()] == ["a.json"]


def test_a_folder_of_this_computer_is_filled_in_place(tmp_path: Path) -> None:
    with files.filled(tmp_path / "export") as place:
        assert place == tmp_path / "export"
    assert files.here(tmp_path) == tmp_path
    files.remove(tmp_path / "absent")


def test_addresses_that_cannot_be_reached() -> None:
    with pytest.raises(ValueError, match=r"s3://b/run: expected a folder, or .* gs://BUCKET"):
        files.at("s3://b/run")
    with (
        mock.patch("importlib.util.find_spec", return_value=None),
        pytest.raises(ValueError, match=r"gs://b/run: gcsfs, .* pip install 'dreambooth_jax\[gcs"),
    ):
        files.at("gs://b/run")
