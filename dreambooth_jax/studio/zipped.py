"""Files as a ZIP file that is made while it is sent: no second copy on the disk."""

import zipfile
from collections.abc import Iterator, Mapping
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


def chunks(found: Mapping[str, Path], *, below: str) -> Iterator[bytes]:
    """Yields the bytes of a ZIP file with these files by their names, uncompressed.

    Weights do not get smaller by compression. below: the folder that they are in there.
    """
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        for name, path in found.items():
            info = zipfile.ZipInfo(f"{below}/{name}")
            info.external_attr = 0o644 << 16
            with (
                path.open("rb") as source,
                archive.open(info, "w", force_zip64=True) as target,
            ):
                while data := source.read(_CHUNK):
                    target.write(data)
                    yield sink.taken()
    yield sink.taken()
