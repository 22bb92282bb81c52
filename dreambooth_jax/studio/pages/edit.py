"""The page that draws a run's subject into photos."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from starlette.responses import HTMLResponse

from dreambooth_jax.studio import runs
from dreambooth_jax.studio.jobs import Job
from dreambooth_jax.studio.pages import after, layout, new
from dreambooth_jax.studio.photos import Shown


def page(
    name: str,
    folder: Path,
    modes: Sequence[str],
    place: str,
    photos: Sequence[Shown],
    jobs: Sequence[Job],
    *,
    busy: bool,
) -> HTMLResponse:
    """Returns the page; `place` is the name of the folder that holds the photos."""
    cards = "".join(_card(place, photo) for photo in photos)
    form = (
        f'<form method="post" action="{escape(layout.url("run", name, "edit"))}" class="card">'
        '<div class="grid">'
        + layout.field(
            "prompts",
            "Prompts",
            "a {subject}",
            lines=3,
            hint="One a line: what is in the masked part afterwards.",
        )
        + layout.choice(
            "masks",
            "What may change",
            {"files": "what is painted white", "none": "all of the photo"},
            "files",
        )
        + '<div class="field"><label><input type="checkbox" name="outside" value="1"> the rest '
        "instead: the background of what is painted</label></div>"
        + layout.field(
            "strength",
            "Strength",
            kind="number",
            hint="1 draws anew, less keeps more. Empty: 1 with a mask, 0.65 without.",
        )
        + layout.field("num_images", "Pictures of each", "2", kind="number")
        + after.steps(folder)
        + f"</div>{after.START}</form>"
    )
    body = (
        after.warning(busy)
        + new.drop(place)
        + f'<ul class="cards photos">{cards}</ul><h3>The edit</h3>{form}'
        + layout.part("edited", edited(name, folder, jobs))
        + new.BRUSH
    )
    return after.frame(name, folder, modes, "edit", "Edit a photo", body)


def _card(place: str, photo: Shown) -> str:
    name = photo.name
    address = layout.url("photos", place, name, small=1, v=photo.changed)
    return (
        f'<li class="card photo" data-photo="{escape(name)}"><img src="{escape(address)}" '
        f'alt="{escape(name)}"><p>{escape(name)}</p>{new.tools(place, photo)}</li>'
    )


def edited(name: str, folder: Path, jobs: Sequence[Job]) -> str:
    """Returns the commands that edit, and what they made, the newest first."""
    return after.commands_of(jobs) + "".join(after.drawn(name, grid) for grid in runs.edits(folder))
