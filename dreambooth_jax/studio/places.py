"""Folders of the studio, and the way from a name in an address to a file in them."""

import dataclasses
import re
from pathlib import Path

from dreambooth_jax import files

_GIVEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # a name for a new folder
EDITS = "edits-of-"  # the names of folders with photos to edit begin with it
STARTED = "studio.json"  # in a run that is started from the page, before it writes anything
RECORDS = ("config.json", "status.json", "in_use.json", STARTED)  # a run's folder has one


class MissingError(LookupError):
    """An address that names nothing here; the text is for the person."""


class RefusedError(ValueError):
    """A request that cannot be met; the text says what was found and what to do."""


@dataclasses.dataclass(frozen=True)
class Places:
    """The folders that the studio reads and writes.

    root: holds the runs, each a folder in it; may be in a bucket (gs://…).
    photos: holds a folder of photos for each subject; on this computer.
    state: the studio's own records; on this computer.
    """

    root: Path
    photos: Path
    state: Path

    @classmethod
    def at(cls, root: str) -> "Places":
        """The places that belong to a folder of runs, which is made where there is none.

        Raises:
          RefusedError: it is a run itself, or a file.
          ValueError, OSError: see `files.at`; it cannot be made.
        """
        folder = files.at(root)
        if files.is_remote(folder):
            own = Path.home() / ".cache" / "dreambooth_jax" / "studio"
            own /= re.sub(r"[^A-Za-z0-9.-]+", "_", str(folder))
            return cls(folder, Path("photos").absolute(), own)
        folder = folder.absolute()
        if (folder / "config.json").is_file():
            raise RefusedError(
                f"{folder} is a run; expected the folder of runs. Write {folder.parent}."
            )
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder, folder / "photos", folder / ".studio")

    def runs(self) -> list[str]:
        """Returns the names of the runs; folders that this user may not look into are left out."""
        found = []
        for path in sorted(self.root.iterdir(), key=lambda each: each.name):
            if path.name.startswith(".") or path.name == self.photos.name:
                continue
            if self._is_run(path):
                found.append(path.name)
        return found

    def run(self, name: str) -> Path:
        """Returns the folder of a run.

        Raises:
          MissingError: the name is none of a run in `root`.
        """
        folder = self.root / name if _is_plain(name) else None
        if folder is None or not self._is_run(folder):
            raise MissingError(f"There is no run {name!r} in {self.root}.")
        return folder

    def new_run(self, name: str) -> Path:
        """Returns the folder for a new run.

        Raises:
          RefusedError: the name does not serve, or is taken.
        """
        folder = self.root / _checked(name)
        if folder.exists() or name == self.photos.name:
            raise RefusedError(f"{folder} is there already. Choose another name for this run.")
        return folder

    def file(self, folder: Path, *parts: str, endings: tuple[str, ...]) -> Path:
        """Returns an existing file below a run's or a subject's folder.

        Raises:
          MissingError: there is none, its ending is another, or the way to it leads elsewhere.
        """
        path = folder.joinpath(*parts) if all(map(_is_plain, parts)) else None
        if (
            path is None
            or not path.name.lower().endswith(endings)
            or not path.is_file()
            or not self._inside(path, folder)
        ):
            raise MissingError(f"There is no such file in {folder.name}.")
        return path

    def subjects(self) -> list[str]:
        """Returns the names of the folders of photos."""
        if not self.photos.is_dir():
            return []
        found = (each.name for each in self.photos.iterdir() if self._is_subject(each))
        return sorted(name for name in found if not name.startswith(EDITS))

    def subject(self, name: str) -> Path:
        """Returns a subject's folder of photos.

        Raises:
          MissingError: there is none of this name.
        """
        folder = self.photos / name if _is_plain(name) else None
        if folder is None or not self._is_subject(folder):
            raise MissingError(f"There is no folder of photos {name!r} in {self.photos}.")
        return folder

    def new_subject(self, name: str) -> Path:
        """Makes a folder of photos; one that is there already stays as it is.

        Raises:
          RefusedError: the name does not serve.
        """
        folder = self.photos / _checked(name)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _is_run(self, folder: Path) -> bool:
        """Returns True for a folder in `root` with a record of a run.

        One that cannot be looked into tells of none: another user's, or of a disk that is gone.
        """
        try:
            found = any((folder / name).exists() for name in RECORDS)
            return found and self._inside(folder, self.root)
        except OSError:
            if files.is_remote(folder):  # no connection: it holds for all of them
                raise
            return False

    def _is_subject(self, folder: Path) -> bool:
        plain = not folder.name.startswith(".") and folder.is_dir()
        return plain and self._inside(folder, self.photos)

    @staticmethod
    def _inside(path: Path, folder: Path) -> bool:
        """Returns True unless a link leads out of the folder."""
        if files.is_remote(path):
            return True
        return path.resolve().is_relative_to(folder.resolve())


def _is_plain(name: str) -> bool:
    """Returns True for the name of one thing in a folder: no way up, down or around."""
    bad = any(mark in name for mark in ("/", "\\", "\0"))
    return bool(name) and not bad and not name.startswith(".") and len(name) <= 200


def _checked(name: str) -> str:
    if not _GIVEN.fullmatch(name):
        raise RefusedError(
            f"{name!r}: expected a name of letters, digits, dots, - and _, such as 'duck-2'."
        )
    return name
