"""Answers about one run, new runs, photos and the queue."""

import re
from pathlib import Path

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from dreambooth_jax.data import images
from dreambooth_jax.studio import editing, guards, photos, runs, starting
from dreambooth_jax.studio.answers import back, picture, post, studio, wants_json, word
from dreambooth_jax.studio.pages import layout, listed, new, one
from dreambooth_jax.studio.places import EDITS, MissingError, RefusedError

_PICTURES = (".png", ".webp")


def _run(request: Request) -> tuple[str, Path]:
    name = request.path_params["run"]
    return name, studio(request).places.run(name)


def _log(request: Request, name: str) -> Path | None:
    """The file of what the last start of a run printed."""
    found = studio(request).jobs.of(name, "train")
    return studio(request).jobs.log(found[0]) if found else None


def run(request: Request) -> Response:
    """Returns the page of a run."""
    name, folder = _run(request)
    own = studio(request)
    return one.run(name, folder, own.jobs.of(name), _log(request, name), own.library.modes())


def live_run(request: Request) -> Response:
    """Returns what changed on that page."""
    name, folder = _run(request)
    found = one.changing(name, folder, studio(request).jobs.of(name), _log(request, name))
    return JSONResponse({"parts": layout.parts(found, request.query_params.get("seen", ""))})


def run_picture(request: Request) -> Response:
    """Returns a picture of a run; with ?small= as a thumbnail."""
    _, folder = _run(request)
    grid, name = request.path_params["grid"], request.path_params["file"]
    file = studio(request).places.file(folder, "samples", grid, name, endings=_PICTURES)
    if "small" in request.query_params:
        return picture(photos.shrunk(file, side=photos.THUMBNAIL), "webp")
    return picture(file.read_bytes(), "png" if file.suffix == ".png" else "webp")


def run_report(request: Request) -> Response:
    """Returns a run's report, which may run its scripts and ask for nothing."""
    _, folder = _run(request)
    file = studio(request).places.file(folder, "report.html", endings=(".html",))
    headers = {"content-security-policy": guards.SANDBOX}
    return Response(file.read_bytes(), media_type="text/html", headers=headers)


def stop(request: Request, form: FormData) -> Response:
    """Asks the process of a run to save and end."""
    name, folder = _run(request)
    told = studio(request).jobs.stop(name, folder)
    return JSONResponse({"message": told}) if wants_json(request) else back(layout.url("run", name))


def resume(request: Request, form: FormData) -> Response:
    """Starts a run again, as it was started last; or queues that."""
    name, folder = _run(request)
    own = studio(request)
    arguments = starting.again(own, name, folder)
    own.jobs.add(name, "train", arguments, queued=word(form, "action") == "queue")
    return back(layout.url("run", name))


def new_first(request: Request) -> Response:
    """Returns the page that asks whose photos."""
    places = studio(request).places
    return new.start(places.subjects(), places.photos)


def new_subject(request: Request, form: FormData) -> Response:
    """Makes a folder for photos."""
    folder = studio(request).places.new_subject(word(form, "subject").strip())
    return back(layout.url("new", folder.name))


def new_form(request: Request) -> Response:
    """Returns the page of a new run of a subject."""
    subject = request.path_params["subject"]
    values = new.FORM | {"name": starting.free_name(studio(request).places, subject)}
    return starting.page(studio(request), subject, values)


def new_sent(request: Request, form: FormData) -> Response:
    """Checks, starts or queues a new run."""
    subject = request.path_params["subject"]
    values = {key: word(form, key) for key in new.FORM}
    action = word(form, "action") or "check"
    return starting.sent(studio(request), subject, values, action)


async def add_photos(request: Request) -> Response:
    """Takes in photos that were dropped."""
    own = studio(request)
    folder = own.places.subject(request.path_params["subject"])
    taken, refused = [], []
    async with request.form(max_files=photos.MOST, max_fields=10) as form:
        for each in form.getlist("photo"):
            if not isinstance(each, UploadFile) or not each.filename:
                continue
            content = await each.read()
            try:
                called = Path(each.filename).name
                taken.append(await run_in_threadpool(photos.take, folder, content, called=called))
            except RefusedError as error:
                refused.append(str(error))
    if refused and (wants_json(request) or not taken):
        raise RefusedError(" ".join(refused))
    if wants_json(request):
        return JSONResponse({"message": ""})
    return _to_photos(request, folder.name)


def _to_photos(request: Request, subject: str) -> Response:
    """Leads back to the page of a folder of photos: that of a new run, or of edits with a run."""
    if subject.startswith(EDITS):
        for name in studio(request).places.runs():
            if editing.folder_of(name) == subject:
                return back(layout.url("run", name, "edit"))
    return back(layout.url("new", subject))


def _photo(request: Request) -> tuple[str, Path]:
    subject = request.path_params["subject"]
    folder = studio(request).places.subject(subject)
    return subject, photos.known(folder, request.path_params["photo"])


def save_caption(request: Request, form: FormData) -> Response:
    """Writes a photo's caption."""
    subject, photo = _photo(request)
    photos.caption(photo, word(form, "caption"))
    told = {"message": f"The caption of {photo.name} is saved."}
    return JSONResponse(told) if wants_json(request) else _to_photos(request, subject)


async def save_mask(request: Request) -> Response:
    """Writes a photo's mask, sent as a PNG."""
    _, photo = _photo(request)
    await run_in_threadpool(photos.paint, photo, await request.body())
    return JSONResponse({"message": f"The mask of {photo.name} is saved."})


def remove_photo(request: Request, form: FormData) -> Response:
    """Removes a photo with its caption and mask."""
    subject, photo = _photo(request)
    photos.remove(photo)
    return _to_photos(request, subject)


def photo_file(request: Request) -> Response:
    """Returns a photo of at most 1024 pixels a side."""
    _, photo = _photo(request)
    return picture(photos.shrunk(photo, side=1024), "webp")


def photo_crop(request: Request) -> Response:
    """Returns the part of a photo that the model sees; `size` is height x width, 96x64."""
    _, photo = _photo(request)
    asked = re.fullmatch(r"(\d{1,5})x(\d{1,5})", request.query_params.get("size", ""))
    height, width = (max(int(side), 16) for side in asked.groups()) if asked else (512, 512)
    size = images.thumbnail((height, width), min(max(height, width), 1024))
    kind = "png" if max(size) <= photos.THUMBNAIL else "webp"
    return picture(photos.crop(photo, size=size), kind)


def photo_mask(request: Request) -> Response:
    """Returns a photo's mask."""
    _, photo = _photo(request)
    mask = photos.mask_of(photo)
    if not mask.is_file():
        raise MissingError(f"{photo.name} has no mask.")
    return picture(photos.shrunk(mask, side=1024), "webp")


def queue(request: Request) -> Response:
    """Returns the page of the queue."""
    return listed.queue(studio(request).jobs.all())


def live_queue(request: Request) -> Response:
    """Returns what changed on that page."""
    found = {"jobs": listed.queue_rows(studio(request).jobs.all())}
    return JSONResponse({"parts": layout.parts(found, request.query_params.get("seen", ""))})


def unqueue(request: Request, form: FormData) -> Response:
    """Takes a command out of the queue."""
    studio(request).jobs.remove(word(form, "key"))
    return back("/queue")


def output(request: Request) -> Response:
    """Returns what a command printed."""
    own = studio(request).jobs
    job = next((j for j in own.all() if j.key == request.path_params["key"]), None)
    if job is None:
        raise MissingError("There is no such command.")
    return PlainTextResponse(runs.tail(own.log(job)) or "It printed nothing yet.\n")


ROUTES = [
    Route("/run/{run}", run),
    Route("/run/{run}/live", live_run),
    Route("/run/{run}/picture/{grid}/{file}", run_picture),
    Route("/run/{run}/report", run_report),
    post("/run/{run}/stop", stop),
    post("/run/{run}/resume", resume),
    Route("/new", new_first),
    post("/new", new_subject),
    Route("/new/{subject}", new_form),
    post("/new/{subject}", new_sent),
    Route("/new/{subject}/photos", add_photos, methods=["POST"]),
    post("/new/{subject}/{photo}/caption", save_caption),
    Route("/new/{subject}/{photo}/mask", save_mask, methods=["POST"]),
    post("/new/{subject}/{photo}/remove", remove_photo),
    Route("/photos/{subject}/{photo}", photo_file),
    Route("/photos/{subject}/{photo}/crop", photo_crop),
    Route("/photos/{subject}/{photo}/mask", photo_mask),
    Route("/queue", queue),
    Route("/queue/live", live_queue),
    post("/queue/remove", unqueue),
    Route("/queue/{key}", output),
]
