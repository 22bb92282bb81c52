"""Parts of every answer: the studio behind it, forms, redirections, pictures."""

import dataclasses
import functools
from collections.abc import Awaitable, Callable

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from dreambooth_jax import files, lock
from dreambooth_jax.studio import guards, photos
from dreambooth_jax.studio.jobs import Jobs
from dreambooth_jax.studio.places import Places
from dreambooth_jax.studio.settings import Library

_FOR_EVER = {"cache-control": "private, max-age=31536000, immutable"}


@dataclasses.dataclass(frozen=True)
class Studio:
    """Folders, processes and settings that the pages work with."""

    places: Places
    jobs: Jobs
    library: Library

    @classmethod
    def over(cls, places: Places) -> "Studio":
        """The studio of these places."""
        return cls(
            places,
            Jobs(places.state, busy=lambda: working(places)),
            Library(places.state / "settings.json"),
        )


def working(places: Places) -> bool:
    """Returns True while a run of the folder has a process on this computer."""
    if files.is_remote(places.root):
        return False
    return any(lock.is_held(places.root / name) for name in places.runs())


def studio(request: Request) -> Studio:
    """Returns the application's studio."""
    found: Studio = request.app.state.studio
    return found


def posted(
    answer: Callable[[Request, FormData], Response],
) -> Callable[[Request], Awaitable[Response]]:
    """Makes an endpoint of a function that takes the form that was sent; it runs in a thread."""

    @functools.wraps(answer)
    async def endpoint(request: Request) -> Response:
        limits = {"max_files": photos.MOST, "max_fields": 400}
        async with request.form(**limits, max_part_size=guards.MB) as form:
            return await run_in_threadpool(answer, request, form)

    return endpoint


def post(path: str, answer: Callable[..., Response]) -> Route:
    """Returns the route of a form that is sent to `path`, see `posted`."""
    return Route(path, posted(answer), methods=["POST"])


def word(form: FormData, name: str) -> str:
    """Returns a text field of a form, "" where there is none."""
    value = form.get(name)
    return value if isinstance(value, str) else ""


def back(address: str) -> Response:
    """Returns the redirection that follows a form."""
    return RedirectResponse(address, status_code=303)


def picture(content: bytes, kind: str) -> Response:
    """Returns a picture whose address changes when it does."""
    return Response(content, media_type=f"image/{kind}", headers=_FOR_EVER)


def wants_json(request: Request) -> bool:
    """Returns True for a request of the page's script, which shows messages itself."""
    return "application/json" in request.headers.get("accept", "")
