"""The pages of what is done with a run afterwards: prompts tried, the export taken away."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from starlette.responses import HTMLResponse

from dreambooth_jax import contents, files, untrusted
from dreambooth_jax.studio import commands, runs
from dreambooth_jax.studio.jobs import Job
from dreambooth_jax.studio.pages import layout, one
from dreambooth_jax.studio.places import RefusedError
from dreambooth_jax.studio.runs import Grid

MB = 2**20


def frame(
    name: str, folder: Path, modes: Sequence[str], here: str, title: str, body: str
) -> HTMLResponse:
    """Returns a page of a run under its tabs."""
    head = f"<h1>{escape(name)}</h1>{one.tabs(name, folder, modes, here)}<section><h2>{title}</h2>"
    live = layout.url("run", name, here, "live")
    return layout.page(f"{title}, {name}", f"{head}{body}</section>", here="Runs", live=live)


def steps(folder: Path) -> str:
    """Lists to choose a checkpoint of each stage from."""
    fields = []
    for stage, steps in runs.steps_on_disk(folder).items():
        options = {"": "the newest", "0": "the untouched model"}
        options |= {str(step): f"after {step} steps" for step in steps}
        fields.append(layout.choice(f"restore.{stage}", f"Weights of the {stage}", options))
    return "".join(fields)


def warning(busy: bool) -> str:
    """Returns a note where another run works."""
    if not busy:
        return ""
    return (
        '<p class="note">A run works on this computer. An accelerator admits one process: queue '
        "this command, or start it if there is room.</p>"
    )


START = (
    '<div class="bar"><button name="action" value="start" class="main">Start now</button>'
    '<button name="action" value="queue">Queue</button></div>'
)


def trying(
    name: str, folder: Path, modes: Sequence[str], jobs: Sequence[Job], busy: bool
) -> HTMLResponse:
    """Returns the page that draws prompts with a run's weights."""
    form = (
        f'<form method="post" action="{escape(layout.url("run", name, "try"))}" '
        'class="card"><div class="grid">'
        + layout.field(
            "prompts",
            "Prompts",
            "a {subject} in the snow",
            lines=4,
            hint="One a line; {subject} is its word and noun.",
        )
        + layout.field(
            "num_images",
            "Pictures of each",
            "2",
            kind="number",
            hint="The k-th has the run's k-th seed, so that prompts can be compared.",
        )
        + layout.field(
            "num_steps", "Steps of the sampler", "", kind="number", hint="Empty: the run's."
        )
        + layout.field("guidance", "Guidance", "", kind="number", hint="Empty: the run's.")
        + steps(folder)
        + f"</div>{START}</form>"
    )
    body = warning(busy) + form + layout.part("tried", tried(name, folder, jobs))
    return frame(name, folder, modes, "try", "Try prompts", body)


def tried(name: str, folder: Path, jobs: Sequence[Job]) -> str:
    """Returns the commands that draw, and the grids that were drawn before, the newest first."""
    grids = [grid for grid in runs.grids(folder) if not grid.of_run]
    newest = sorted(grids, key=lambda grid: grid.changed, reverse=True)
    return commands_of(jobs) + "".join(drawn(name, grid) for grid in newest)


def drawn(name: str, grid: Grid) -> str:
    """Returns the pictures of a grid under its name."""
    figures = "".join(
        f"<figure>{layout.shot(name, grid, each)}<figcaption>{escape(each.prompt)}</figcaption>"
        "</figure>"
        for each in grid.pictures
    )
    return f'<h3>{escape(grid.title)}</h3><div class="gallery">{figures}</div>'


def commands_of(jobs: Sequence[Job]) -> str:
    """The newest commands with their outcome."""
    lines = []
    for job in jobs[:5]:
        output = layout.link(layout.url("queue", job.key), "output")
        when = layout.ago(job.ended or job.since)
        lines.append(
            f"<li>{escape(job.mode)}: <strong>{escape(job.outcome)}</strong> "
            f'<span class="small">{when}</span>, {output}'
            f"<details><summary>Command</summary>"
            f"{layout.command(commands.shown(job.arguments))}</details></li>"
        )
    return f'<ul class="plain card">{"".join(lines)}</ul>' if lines else ""


def taking(
    name: str, folder: Path, modes: Sequence[str], jobs: Sequence[Job], busy: bool
) -> HTMLResponse:
    """Returns the page that exports a run, and hands out its files."""
    dtypes = {"": "as the run says"} | {each: each for each in ("float16", "bfloat16", "float32")}
    form = (
        f'<form method="post" action="{escape(layout.url("run", name, "take"))}" class="card">'
        '<div class="grid">'
        + layout.choice("dtype", "Numbers of the weights", dtypes)
        + layout.choice(
            "single_file",
            "One file as well",
            {"": "as the run says", "True": "yes", "False": "no"},
            hint="Stable Diffusion only, for A1111 and ComfyUI.",
        )
        + steps(folder)
        + f"</div>{START}</form>"
    )
    push = _pushing(name, folder) if "push" in modes else ""
    body = warning(busy) + layout.part("export", export(name, folder, jobs))
    body += f"<h3>Export again</h3>{form}{push}"
    return frame(name, folder, modes, "take", "Take away", body)


def _pushing(name: str, folder: Path) -> str:
    """The form that pushes the export; it tells who will see it, and sends just that."""
    public = runs.settings(folder).get("export.private") is False
    return (
        f'<h3>Push to the hub</h3><form method="post" class="card stack" '
        f'action="{escape(layout.url("run", name, "push"))}">'
        + layout.field(
            "repo",
            "Name",
            hint="owner/name. The token is that of the environment, HF_TOKEN.",
        )
        + layout.choice(
            "private",
            "Seen by",
            {"True": "its owner alone", "False": "everybody"},
            str(not public),
            hint="Of a repository that is made there. At first as the run's export.private says.",
        )
        + f"{START}</form>"
    )


def export(name: str, folder: Path, jobs: Sequence[Job]) -> str:
    """Returns the files of the export, and the commands that make it."""
    told = commands_of(jobs)
    try:
        found = exported(folder)
    except RefusedError as error:
        return f'{told}<p class="note">{escape(str(error))}</p>'
    sizes = {path: _bytes(file) for path, file in found.files.items()}
    left = "".join(
        f'<p class="note">{escape(text)}</p>' for text in (found.refused, found.told) if text
    )
    if not sizes:
        return f"{told}{left}<p>There is no export yet. A run that finishes makes one.</p>"
    rows = [(path, _size(size)) for path, size in sizes.items()]
    total = sum(sizes.values()) / MB
    button = layout.link(
        layout.url("run", name, "export.zip"), f"Download all, {total:.0f} MB", "button main"
    )
    table = layout.table(("file", "size"), rows, label="Files of the export")
    where = f'<p class="small">in <code>{escape(str(folder / "export"))}</code></p>'
    return (
        f"{told}{where}{left}<p>{button}</p><details open><summary>Files</summary>{table}</details>"
    )


def _size(count: int) -> str:
    if count < 1000:
        return f"{count} bytes"
    return f"{count / MB:.1f} MB" if count >= MB else f"{count / 1000:.1f} kB"


def exported(folder: Path) -> contents.Contents:
    """Returns the files of a run's export; none without one.

    Raises:
      RefusedError: a record of the export is damaged.
    """
    place = folder / "export"
    if not place.is_dir():
        return contents.Contents()
    if not contents.is_inside(place, folder):
        return contents.Contents(leading_out=["export/"])
    try:
        return contents.of(place)
    except untrusted.FileError as error:
        raise RefusedError(f"{error} Export again.") from error


def _bytes(path: Path) -> int:
    about: Any = path.stat()
    return int(about.length if files.is_remote(path) else about.st_size)
