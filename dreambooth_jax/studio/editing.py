"""Answers about edits of photos with a run's subject, where the main command has that mode."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dreambooth_jax.studio import commands, following, photos
from dreambooth_jax.studio.answers import back, picture, posted, studio, word
from dreambooth_jax.studio.pages import edit, layout
from dreambooth_jax.studio.places import EDITS, MissingError, RefusedError

_MASKS = ("files", "none")
_LONGEST, _DIGITS = 64, 10  # characters of a folder's name, and of a hash in it
_SIZE = 512  # pixels, to look at photos with; an edit takes photos of any size


def folder_of(name: str) -> str:
    """Returns the name of the folder of photos that are edited with a run, each run its own.

    A name that does not serve as it is has its hash behind what does serve of it.
    """
    plain, room = re.sub(r"[^A-Za-z0-9._-]", "_", name), _LONGEST - len(EDITS)
    if plain != name or len(name) > room:
        ending = "-" + hashlib.sha256(os.fsencode(name)).hexdigest()[:_DIGITS]
        plain = plain[: room - len(ending)] + ending
    return EDITS + plain


def _run(request: Request) -> tuple[str, Path, Path]:
    """A run's name and folder, and the folder of the photos to edit.

    Raises:
      MissingError: the main command has no such mode.
    """
    own, name = studio(request), request.path_params["run"]
    folder = own.places.run(name)
    if "edit" not in own.library.known()["modes"]:
        raise MissingError("This version has no --mode=edit.")
    return name, folder, own.places.new_subject(folder_of(name))


def page(request: Request) -> Response:
    """Returns the page that edits photos."""
    name, folder, place = _run(request)
    own = studio(request)
    shown, _ = photos.looked_at(place, size=_SIZE)
    return edit.page(
        name, folder, own.library.modes(), place.name, shown, own.jobs.of(name, "edit"),
        busy=following.is_busy(own),
    )  # fmt: skip


def live(request: Request) -> Response:
    """Returns what changed on that page."""
    name, folder, _ = _run(request)
    found = {"edited": edit.edited(name, folder, studio(request).jobs.of(name, "edit"))}
    return JSONResponse({"parts": layout.parts(found, request.query_params.get("seen", ""))})


def begin(request: Request, form: FormData) -> Response:
    """Edits the photos in a process of its own."""
    name, _, place = _run(request)
    names = photos.names(place)
    if not names:
        raise RefusedError("Add a photo to edit first.")
    masks = word(form, "masks")
    if masks not in _MASKS:
        raise RefusedError(f"masks: {masks!r}; expected {' or '.join(_MASKS)}.")
    bare = [each for each in names if not photos.mask_of(place / each).is_file()]
    if masks == "files" and bare:
        raise RefusedError(f"{', '.join(bare)}: no mask. Paint what may change, or choose 'all'.")
    prompts = commands.lines(word(form, "prompts"))
    if not prompts:
        raise RefusedError("Write at least one prompt, such as: a {subject}")
    changed: dict[str, Any] = {"edit.images": place, "edit.masks": masks, "edit.prompts": prompts}
    for field, key in (("strength", "edit.strength"), ("num_images", "edit.num_images")):
        if value := word(form, field).strip():
            changed[key] = value
    if word(form, "outside"):
        changed["edit.outside"] = True
    following.begin(request, form, "edit", changed)
    return back(layout.url("run", name, "edit"))


def edited_file(request: Request) -> Response:
    """Returns an edited photo; with ?small= as a thumbnail."""
    places = studio(request).places
    folder = places.run(request.path_params["run"])
    grid, name = request.path_params["grid"], request.path_params["file"]
    file = places.file(folder, "edits", grid, name, endings=(".png",))
    if "small" in request.query_params:
        return picture(photos.shrunk(file, side=photos.THUMBNAIL), "webp")
    return picture(file.read_bytes(), "png")


ROUTES = [
    Route("/run/{run}/edit", page),
    Route("/run/{run}/edit/live", live),
    Route("/run/{run}/edit", posted(begin), methods=["POST"]),
    Route("/run/{run}/edits/{grid}/{file}", edited_file),
]
