"""The application: addresses, errors, and the guards around all of it."""

import contextlib
import logging
from collections.abc import AsyncIterator, Iterable
from importlib import resources
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from dreambooth_jax.studio import editing, following, guards, routes
from dreambooth_jax.studio.answers import Studio, studio, wants_json
from dreambooth_jax.studio.pages import layout, listed
from dreambooth_jax.studio.places import MissingError, RefusedError

_TYPES = {"css": "text/css", "js": "text/javascript"}


def application(found: Studio, *, token: str, hosts: Iterable[str] = guards.LOCAL) -> ASGIApp:
    """Returns the whole application behind its guards."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        found.jobs.watch()
        found.library.begin()
        yield
        found.jobs.close()

    own = [Route("/assets/{name}", asset), Route("/", all_runs), Route("/live", live_runs)]
    app = Starlette(
        routes=[*own, *routes.ROUTES, *following.ROUTES, *editing.ROUTES],
        lifespan=lifespan,
        exception_handlers={
            MissingError: _missing,
            RefusedError: _refused,
            HTTPException: _http,
            Exception: _failed,
        },
    )
    app.router.redirect_slashes = False
    app.state.studio = found
    return guards.Guard(app, token=token, hosts=hosts)


def _answer(request: Request, text: str, status: int) -> Response:
    if wants_json(request):
        return JSONResponse({"message": text}, status_code=status)
    title = {404: "Not found"}.get(status, "Not done")
    return layout.told(text, title=title, status=status)


def _missing(request: Request, error: Exception) -> Response:
    return _answer(request, str(error.args[0] if error.args else error), 404)


def _refused(request: Request, error: Exception) -> Response:
    return _answer(request, str(error), 400)


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _answer(request, str(error.detail), error.status_code)


def _failed(request: Request, error: Exception) -> Response:
    """The answer to a mistake of this program, or to a full disk; the log has its place."""
    logging.getLogger(__name__).error("%s %s", request.method, request.url.path, exc_info=error)
    return _answer(request, f"{type(error).__name__}: {error}", 500)


def asset(request: Request) -> Response:
    """Returns the page's style or script."""
    name = request.path_params["name"]
    if name not in ("studio.css", "studio.js"):
        raise MissingError(f"There is no file {name!r}.")
    content = resources.files("dreambooth_jax").joinpath("assets", name).read_bytes()
    kind = _TYPES[name.rpartition(".")[2]]
    return Response(content, media_type=kind, headers={"cache-control": "no-cache"})


def _runs(request: Request) -> list[tuple[str, Path]]:
    places = studio(request).places
    return [(name, places.run(name)) for name in places.runs()]


def all_runs(request: Request) -> Response:
    """Returns the page of all runs."""
    return listed.all_runs(_runs(request), str(studio(request).places.root))


def live_runs(request: Request) -> Response:
    """Returns what changed on that page."""
    found, seen = _runs(request), request.query_params.get("seen", "")
    changed = layout.parts(listed.all_parts(found), seen)
    return JSONResponse({"parts": changed, "count": len(found)})
