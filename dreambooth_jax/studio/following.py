"""Answers about what follows a run: comparisons, prompts that are tried, exports."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from dreambooth_jax.studio import commands, runs, zipped
from dreambooth_jax.studio.answers import Studio, back, post, studio, word, working
from dreambooth_jax.studio.pages import after, compare, layout
from dreambooth_jax.studio.places import MissingError, RefusedError


def comparison(request: Request) -> Response:
    """Returns the page of two runs side by side."""
    places, query = studio(request).places, request.query_params
    picked = query.getlist("run")
    if picked and len(picked) != 2:
        raise RefusedError(f"Choose two runs to compare; {len(picked)} were chosen.")
    names = picked or [query.get("a", ""), query.get("b", "")]
    sides: list[compare.Side | None] = []
    for name, key in zip(names, ("a_at", "b_at"), strict=True):
        sides.append(compare.side(name, places.run(name), query.get(key, "")) if name else None)
    return compare.page(places.runs(), *sides)


def _run(request: Request) -> tuple[Studio, str, Path]:
    own, name = studio(request), request.path_params["run"]
    return own, name, own.places.run(name)


def is_busy(own: Studio) -> bool:
    """Returns True while a command or a run works on this computer."""
    return bool(own.jobs.running()) or working(own.places)


def trying(request: Request) -> Response:
    """Returns the page that draws prompts."""
    own, name, folder = _run(request)
    jobs = own.jobs.of(name, "sample")
    return after.trying(name, folder, own.library.modes(), jobs, is_busy(own))


def live_trying(request: Request) -> Response:
    """Returns what changed on that page."""
    own, name, folder = _run(request)
    found = {"tried": after.tried(name, folder, own.jobs.of(name, "sample"))}
    return JSONResponse({"parts": layout.parts(found, request.query_params.get("seen", ""))})


def _restored(folder: Path, form: FormData) -> dict[str, str]:
    """The steps that a form chose, by setting."""
    found = {}
    for stage in runs.steps_on_disk(folder):
        step = word(form, f"restore.{stage}").strip()
        if step:
            found[f"restore.{stage}"] = step
    return found


def begin(request: Request, form: FormData, mode: str, changed: Mapping[str, Any]) -> None:
    """Checks and starts, or queues, a mode over a run, with the weights that the form chose.

    Raises:
      RefusedError: the settings do not fit, or the run wrote none yet.
    """
    own, name, folder = _run(request)
    known = own.library.known()
    if not (folder / "config.json").is_file():
        raise RefusedError(f"{name} wrote no settings yet. Wait until it has begun.")
    keys = [each["key"] for each in known["settings"]]
    settings = {**changed, **_restored(folder, form)}
    line = commands.of_run(mode, known["of_run"], folder, settings, known=keys)
    problem = own.library.check(line)["problem"]
    if problem:
        raise RefusedError(problem)
    own.jobs.add(name, mode, line, queued=word(form, "action") == "queue")


def draw(request: Request, form: FormData) -> Response:
    """Draws prompts with a run's weights in a process of its own."""
    _, name, _ = _run(request)
    prompts = commands.lines(word(form, "prompts"))
    if not prompts:
        raise RefusedError("Write at least one prompt, such as: a {subject} in the snow")
    changed: dict[str, Any] = {"sample.prompts": prompts}
    for field, key in (
        ("num_images", "sample.num_images"),
        ("num_steps", "sampler.num_steps"),
        ("guidance", "sampler.guidance_scale"),
    ):
        if value := word(form, field).strip():
            changed[key] = value
    begin(request, form, "sample", changed)
    return back(layout.url("run", name, "try"))


def taking(request: Request) -> Response:
    """Returns the page of a run's export."""
    own, name, folder = _run(request)
    jobs = own.jobs.of(name, "export", "push")
    return after.taking(name, folder, own.library.modes(), jobs, is_busy(own))


def live_taking(request: Request) -> Response:
    """Returns what changed on that page."""
    own, name, folder = _run(request)
    found = {"export": after.export(name, folder, own.jobs.of(name, "export", "push"))}
    return JSONResponse({"parts": layout.parts(found, request.query_params.get("seen", ""))})


def export(request: Request, form: FormData) -> Response:
    """Exports a run in a process of its own."""
    _, name, _ = _run(request)
    changed: dict[str, Any] = {}
    for field, key in (("dtype", "export.dtype"), ("single_file", "export.single_file")):
        if value := word(form, field):
            changed[key] = value
    begin(request, form, "export", changed)
    return back(layout.url("run", name, "take"))


def push(request: Request, form: FormData) -> Response:
    """Pushes an export to the hub in a process of its own, whose token the environment holds."""
    own, name, _ = _run(request)
    if "push" not in own.library.known()["modes"]:
        raise MissingError("This version has no --mode=push.")
    private = word(form, "private")
    if private not in ("True", "False"):
        raise RefusedError(f"private: {private!r}; expected True or False.")
    changed = {"export.push_to_hub": word(form, "repo").strip(), "export.private": private}
    begin(request, form, "push", changed)
    return back(layout.url("run", name, "take"))


def archive(request: Request) -> Response:
    """Returns an export as a ZIP file, made while it is sent."""
    _, name, folder = _run(request)
    found = after.exported(folder)
    if found.refused:
        raise RefusedError(f"The export of {name}: {found.refused}")
    if not found.files:
        raise MissingError(f"{name} has no export.")
    if found.told:
        logging.getLogger(__name__).warning("%s: %s", folder / "export", found.told)
    content = zipped.chunks(found.files, below=name)
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in name)
    headers = {"content-disposition": f'attachment; filename="{safe}.zip"'}
    return StreamingResponse(content, media_type="application/zip", headers=headers)


ROUTES = [
    Route("/compare", comparison),
    Route("/run/{run}/try", trying),
    Route("/run/{run}/try/live", live_trying),
    post("/run/{run}/try", draw),
    Route("/run/{run}/take", taking),
    Route("/run/{run}/take/live", live_taking),
    post("/run/{run}/take", export),
    post("/run/{run}/push", push),
    Route("/run/{run}/export.zip", archive),
]
