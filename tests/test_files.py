"""Files appear whole or not at all; addresses that nobody can reach are told at once."""

import datetime
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


def test_the_folder_of_a_user_who_is_not_here_is_told() -> None:
    for path in (files.at, files.local):
        with pytest.raises(ValueError, match=r"~nobody-here/run: .*Write the folder in full"):
            path("~nobody-here/run")


class Bucket:
    """A listing of a bucket with names of anybody's choice, as gcsfs gives it."""

    def __init__(self, names: dict[str, bytes]) -> None:
        self.names = names

    def find(self, start: str, *, detail: bool) -> dict[str, dict[str, object]]:
        time = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
        return {name: {"size": len(v), "mtime": time} for name, v in self.names.items()}

    def get_file(self, name: str, place: str) -> None:
        Path(place).write_bytes(self.names[name])


@pytest.mark.parametrize("name", ["tokenizer/../../../x.json", "{outside}/x.json", "../x.json"])
def test_no_object_of_a_bucket_is_written_outside_of_the_cache(name: str, tmp_path: Path) -> None:
    """An object may have any name: `MODEL//abs/x.json`, `MODEL/tokenizer/../../x`."""
    place, outside = tmp_path / "a" / "b" / "cache", tmp_path / "outside"
    outside.mkdir()
    (outside / "x.json").write_text("mine")
    odd = "b/model/" + name.replace("{outside}", str(outside))
    bucket = Bucket({"b/model/model_index.json": b"{}", odd: b"theirs"})
    patterns = ["*.json", "tokenizer*/*"]
    with (
        mock.patch("fsspec.filesystem", return_value=bucket),
        pytest.raises(ValueError, match=r"gs://b/model names '.*x\.json', which is no path"),
    ):
        files.mirror(files.at("gs://b/model"), place, patterns=patterns)
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert written == [outside / "x.json"] and written[0].read_text() == "mine"


def test_the_mark_of_an_empty_folder_in_a_bucket_is_no_file(tmp_path: Path) -> None:
    names = {"b/model/model_index.json": b"{}", "b/model/tokenizer/": b""}
    with mock.patch("fsspec.filesystem", return_value=Bucket(names)):
        files.mirror(files.at("gs://b/model"), tmp_path / "m", patterns=["*.json", "tokenizer*/*"])
    assert [path.name for path in (tmp_path / "m").rglob("*")] == ["model_index.json"]
