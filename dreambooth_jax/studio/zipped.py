"""A folder as a ZIP file that is made while it is sent: no second copy on the disk."""

import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

_CHUNK = 2**20  # bytes


class _Sink:
    """A file that only takes: what was written is handed on and forgotten."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes, /) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Does nothing: nothing is held back."""

    def close(self) -> None:
        """Does nothing: there is nothing to close."""

    def taken(self) -> bytes:
        """Returns what was written since the last call."""
        data = b"".join(self._parts)
        self._parts.clear()
        return data


def chunks(folder: Path, names: Iterable[str], *, below: str) -> Iterator[bytes]:
    """Yields the bytes of a ZIP file with these files of `folder`, uncompressed.

    Weights do not get smaller by compression. below: the folder that they are in there.
    """
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for name in names:
            info = zipfile.ZipInfo(f"{below}/{name}")
            info.external_attr = 0o644 << 16
            with (
                (folder / name).open("rb") as source,
                archive.open(info, "w", force_zip64=True) as target,
            ):
                while data := source.read(_CHUNK):
                    target.write(data)
                    yield sink.taken()
    yield sink.taken()
