"""The page of one run: state, pictures over steps, losses, log, settings."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from starlette.responses import HTMLResponse

from dreambooth_jax.report import plot
from dreambooth_jax.studio import runs
from dreambooth_jax.studio.jobs import Job
from dreambooth_jax.studio.pages import layout
from dreambooth_jax.studio.runs import Grid, State

_SILENT = 60.0  # seconds, after which the last sign of life is told
_MOST_POINTS = 400  # of a curve that the script reads values from
_CURVES = {"subject": "photos of the subject", "prior": "class images"}


def run(
    name: str, folder: Path, jobs: Sequence[Job], log: Path | None, modes: Sequence[str]
) -> HTMLResponse:
    """Returns the page of a run."""
    body = (
        f"<h1>{escape(name)}</h1>"
        + layout.part("head", head(name, folder, jobs))
        + tabs(name, folder, modes)
        + "<section><h2>Pictures</h2>"
        + layout.part("pictures", pictures(name, folder))
        + "</section><section><h2>Loss</h2>"
        + layout.part("curves", curves(folder))
        + "</section>"
        + layout.part("advice", advice(folder))
        + '<section><h2>Log</h2><details data-keep="log"><summary>The last lines</summary>'
        + layout.part("log", log_part(folder, log))
        + "</details></section>"
        + _settings(folder)
    )
    return layout.page(name, body, here="Runs", live=layout.url("run", name, "live"))


def changing(name: str, folder: Path, jobs: Sequence[Job], log: Path | None) -> dict[str, str]:
    """Returns the parts of that page that change."""
    return {
        "head": head(name, folder, jobs),
        "pictures": pictures(name, folder),
        "curves": curves(folder),
        "advice": advice(folder),
        "log": log_part(folder, log),
    }


def tabs(name: str, folder: Path, modes: Sequence[str], here: str = "") -> str:
    """Returns the links from a run to what can be done with it."""
    entries = [("", "Run"), ("try", "Try prompts"), ("edit", "Edit a photo"), ("take", "Take away")]
    shown = [each for each in entries if each[0] != "edit" or "edit" in modes]
    links = []
    for key, text in shown:
        address = layout.url("run", name, key) if key else layout.url("run", name)
        current = " aria-current=page" if key == here else ""
        links.append(f'<li><a href="{escape(address)}"{current}>{text}</a></li>')
    if (folder / "report.html").is_file():
        address = layout.url("run", name, "report")
        links.append(f'<li><a href="{escape(address)}">Report</a></li>')
    links.append(f'<li><a href="{escape(layout.url("compare", a=name))}">Compare</a></li>')
    return f'<nav class="tabs" aria-label="This run"><ul>{"".join(links)}</ul></nav>'


def head(name: str, folder: Path, jobs: Sequence[Job]) -> str:
    """Returns subject, state and the buttons that fit it."""
    state = runs.state(folder)
    working = [job for job in jobs if job.state == "running"]
    if working and not state.active:
        state = State("starting" if working[0].mode == "train" else "running")
    failed = next((j for j in jobs if j.mode == "train" and j.state == "ended"), None)
    lines = [f'<p class="lead">{escape(runs.subject(folder))}</p>', f"<p>{layout.badge(state)}</p>"]
    lines.append(layout.progress(state))
    if state.part and state.parts:
        lines.append(
            f'<p class="small">part {state.part_number} of {state.parts}: {escape(state.part)}</p>'
        )
    if state.message:
        kind = "message" if state.name in ("failed", "lost") else "note"
        lines.append(f'<p class="{kind}">{escape(state.message)}</p>')
    elif failed is not None and failed.outcome == "failed" and not state.active:
        lines.append('<p class="message">The last start failed; the log tells why.</p>')
    if state.active and state.updated and time.time() - state.updated > _SILENT:
        lines.append(f'<p class="small">last sign of life {layout.ago(state.updated)}</p>')
    buttons = []
    if state.active:
        if working or state.here:
            buttons.append(
                layout.post(layout.url("run", name, "stop"), "Stop and save", kind="main")
            )
        elif state.host:
            lines.append(f'<p class="small">process {state.pid} on {escape(state.host)}</p>')
    else:
        label = "Continue" if state.name != "finished" else "Run again what changed"
        if state.name != "finished":
            buttons.append(layout.post(layout.url("run", name, "resume"), label, kind="main"))
            buttons.append(
                layout.post(
                    layout.url("run", name, "resume"), "Queue it", fields={"action": "queue"}
                )
            )
    lines.append(f'<div class="bar">{"".join(buttons)}</div>' if buttons else "")
    return "".join(lines)


def pictures(name: str, folder: Path) -> str:
    """Returns the prompts over the steps: one moment with a slider, then all beside each other."""
    found = [grid for grid in runs.grids(folder) if grid.of_run]
    if not found:
        return '<p class="small">No pictures yet. The first are drawn before the training.</p>'
    prompts = list(dict.fromkeys(p.prompt for grid in found for p in grid.pictures))
    stops = "".join(
        f'<div class="moment" data-moment="{k}"{"" if k == len(found) - 1 else " hidden"}>'
        f"{_moment(name, grid)}</div>"
        for k, grid in enumerate(found)
    )
    labels = escape("|".join(grid.title for grid in found))
    slider = (
        f'<div class="bar"><label for="moment">Moment</label><input id="moment" type="range" '
        f'min="0" max="{len(found) - 1}" value="{len(found) - 1}" data-labels="{labels}" '
        f'aria-valuetext="{escape(found[-1].title)}">'
        f'<output for="moment">{escape(found[-1].title)}</output></div>'
        if len(found) > 1
        else f'<p class="small">{escape(found[0].title)}</p>'
    )
    rows = "".join(_row(name, prompt, found) for prompt in prompts)
    matrix = '<details data-keep="matrix" open><summary>All moments</summary>'
    matrix += f'<div class="rows">{rows}</div></details>'
    return f"{slider}{stops}{matrix if len(found) > 1 else ''}"


def _moment(name: str, grid: Grid) -> str:
    figures = "".join(
        f"<figure>{layout.shot(name, grid, picture)}"
        f"<figcaption>{escape(picture.prompt)}</figcaption></figure>"
        for picture in grid.pictures
    )
    return f'<div class="gallery">{figures}</div>'


def _row(name: str, prompt: str, found: Sequence[Grid]) -> str:
    """The first picture of a prompt at every moment, side by side."""
    cells = []
    for grid in found:
        picture = next((each for each in grid.pictures if each.prompt == prompt), None)
        if picture is not None:
            cells.append(
                f"<figure>{layout.shot(name, grid, picture)}"
                f"<figcaption>{escape(grid.title)}</figcaption></figure>"
            )
    label = escape(f"{prompt} over the training")
    return (
        f'<div><h3>{escape(prompt)}</h3><div class="strip" tabindex="0" role="region" '
        f'aria-label="{label}">{"".join(cells)}</div></div>'
    )


def curves(folder: Path) -> str:
    """Returns the losses of each stage, with the values at the step under the pointer."""
    found = runs.losses(folder)
    if not found:
        return '<p class="small">No step is logged yet.</p>'
    held = int(runs.settings(folder).get("subject.held_out") or 0) > 0
    drawn = []
    for k, stage in enumerate(dict.fromkeys(name.split("/")[0] for name in found)):
        own = {
            _called(name, held): points
            for name, points in found.items()
            if name.startswith(f"{stage}/") and any(math.isfinite(y) for _, y in points)
        }
        if own:
            drawn.append(_plot(stage, k, own))
    return "".join(drawn)


def _called(name: str, held: bool) -> str:
    """The name of a curve in words; a loss is called held out only where photos are."""
    _, kind, what = name.split("/")
    words = _CURVES.get(what, what)
    if kind == "loss":
        return f"loss on {words}"
    return f"held-out loss on {words}" if held else f"loss on {words}, same noise every time"


def _plot(stage: str, k: int, own: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    drawing = plot.draw(own, y_label=f"loss, {stage}")
    legend = "".join(
        f'<tr><th scope="row"><span class="key {key}"></span>{escape(row[0])}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + f"<td data-value={n}></td></tr>"
        for n, (key, row) in enumerate(zip(drawing.keys, drawing.legend, strict=True))
    )
    steps = sorted({x for points in own.values() for x, _ in points})
    every = max(1, len(steps) // _MOST_POINTS)
    steps = [*steps[::every], steps[-1]]
    tables = [dict(points) for points in own.values()]
    values = [[_short(points.get(step)) for step in steps] for points in tables]
    data = escape(
        json.dumps(
            {"steps": [int(step) for step in steps], "values": values}, separators=(",", ":")
        )
    )
    notices = "".join(f'<p class="small">{escape(text)}.</p>' for text in drawing.notices)
    return (
        f'<div class="curves card" data-curves="{data}"><h3>{escape(stage)}</h3>'
        f'<div class="plot">{drawing.svg}<div class="cursor" hidden></div></div>'
        f'<div class="bar"><label for="at-{k}">Values at step</label>'
        f'<input id="at-{k}" type="range" min="0" max="{len(steps) - 1}" value="{len(steps) - 1}">'
        f'<output for="at-{k}">{int(steps[-1])}</output></div>'
        '<div class="scroll" tabindex="0" role="region" '
        f'aria-label="Losses of the {escape(stage)}">'
        '<table><thead><tr><th scope="col">line</th><th scope="col">start</th>'
        '<th scope="col">end</th><th scope="col">lowest</th><th scope="col">at the step</th></tr>'
        f"</thead><tbody>{legend}</tbody></table></div>{notices}</div>"
    )


def _short(value: float | None) -> str:
    return f"{value:.4g}" if value is not None and math.isfinite(value) else ""


def advice(folder: Path) -> str:
    """Returns the recommended step of each stage, by `advice.json`; "" where there is none."""
    found = []
    for stage, each in sorted(runs.record(folder / "advice.json").items()):
        if isinstance(each, dict) and isinstance(each.get("step"), int):
            why = each.get("why") if isinstance(each.get("why"), str) else ""
            found.append(
                f"<p><strong>{escape(stage)}: step {each['step']}.</strong> {escape(why or '')}</p>"
            )
    if not found:
        return ""
    return f"<section><h2>Recommended step</h2>{''.join(found)}</section>"


def log_part(folder: Path, log: Path | None) -> str:
    """Returns the last lines of the log."""
    text = runs.log(folder, log).strip("\n")
    last = "\n".join(text.splitlines()[-120:])
    if not last:
        return '<p class="small">There is no log yet.</p>'
    return f'<pre class="log" tabindex="0" aria-label="Log">{escape(last)}</pre>'


def _settings(folder: Path) -> str:
    """The settings of the run and its seconds, folded."""
    flat = runs.settings(folder)
    rows = [(key, _told(value)) for key, value in sorted(flat.items())]
    seconds = runs.record(folder / "timings.json")
    times = [
        (part, layout.duration(float(value)))
        for part, value in seconds.items()
        if isinstance(value, int | float) and math.isfinite(value)
    ]
    about = layout.table(("setting", "value"), rows, label="Settings") if rows else "<p>None.</p>"
    timed = layout.table(("part", "time"), times, label="Times") if times else ""
    return (
        f"<section><h2>Settings and times</h2>{timed}"
        f'<details data-keep="settings"><summary>All settings</summary>{about}</details></section>'
    )


def _told(value: Any) -> str:
    if isinstance(value, list):
        return "(" + ", ".join(_told(each) for each in value) + ")"
    return repr(value) if isinstance(value, str) else str(value)
