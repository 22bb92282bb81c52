"""The page of all runs, and that of the queue."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from starlette.responses import HTMLResponse

from dreambooth_jax.studio import commands, runs
from dreambooth_jax.studio.jobs import Job
from dreambooth_jax.studio.pages import layout
from dreambooth_jax.studio.runs import Grid


def brief(folder: Path) -> str:
    """Returns a run's state in short: the part of its card that changes."""
    state = runs.state(folder)
    updated = layout.ago(state.updated) if state.active else ""
    where = f"on {state.host}" if state.active and state.host and not state.here else ""
    small = " ".join(filter(None, (where, f"last sign {updated}" if updated else "")))
    message = state.message if state.name in ("failed", "stopped") else ""
    return (
        f"<p>{layout.badge(state)}</p>{layout.progress(state)}"
        + (f'<p class="small">{escape(small)}</p>' if small else "")
        + (f'<p class="small">{escape(message[:200])}</p>' if message else "")
    )


def cover(name: str, folder: Path) -> str:
    """Returns the newest picture of a run, the first prompt's."""
    drawn = [grid for grid in runs.grids(folder) if grid.of_run]
    newest = max(drawn, key=lambda grid: grid.changed, default=None)
    if newest is None:
        return '<div class="nothing">no picture yet</div>'
    return _cover(name, newest)


def _cover(name: str, grid: Grid) -> str:
    picture = grid.pictures[0]
    large = max(picture.width, picture.height) > 256
    query: dict[str, object] = {"v": grid.changed}
    if large:
        query["small"] = 1
    address = layout.url("run", name, "picture", grid.label, picture.file, **query)
    kind = ' class="pixels"' if max(picture.width, picture.height) <= 128 else ""
    return f'<img{kind} src="{escape(address)}" alt="" width="160" height="160">'


def all_runs(found: Sequence[tuple[str, Path]], root: str) -> HTMLResponse:
    """Returns the page of all runs."""
    cards = []
    for k, (name, folder) in enumerate(found):
        words = runs.subject(folder)
        cards.append(
            f'<li class="card run" data-filter="{escape(f"{name} {words}".lower())}">'
            f'<div class="cover">{layout.part(f"cover-{k}", cover(name, folder))}</div>'
            f'<div class="about"><h2>{layout.link(layout.url("run", name), name)}</h2>'
            f'<p class="small">{escape(words)}</p>{layout.part(f"brief-{k}", brief(folder))}</div>'
            f'<label class="pick"><input type="checkbox" name="run" value="{escape(name)}">'
            f'<span class="small">compare</span></label></li>'
        )
    intro = f'<p class="lead">{_count(len(found))} in <code>{escape(root)}</code></p>'
    if not found:
        intro += (
            '<p class="lead">A run that is started here, in a shell or on a cluster shows up by '
            "itself once its folder is there.</p>"
            f"<p>{layout.link('/new', 'Start one', 'button main')}</p>"
        )
        return layout.page("Runs", f"<h1>Runs</h1>{intro}", here="Runs", live="/live")
    tools = (
        '<div class="bar"><label for="filter">Filter</label>'
        '<input id="filter" type="search" autocomplete="off">'
        '<button type="submit">Compare the two chosen</button></div>'
    )
    body = (
        f'<h1>Runs</h1>{intro}<form action="/compare" method="get">{tools}'
        f'<ul class="cards" data-count="{len(found)}">{"".join(cards)}</ul></form>'
    )
    return layout.page("Runs", body, here="Runs", live="/live")


def all_parts(found: Sequence[tuple[str, Path]]) -> dict[str, str]:
    """Returns the parts of that page that change."""
    told = {}
    for k, (name, folder) in enumerate(found):
        told[f"cover-{k}"] = cover(name, folder)
        told[f"brief-{k}"] = brief(folder)
    return told


def _count(number: int) -> str:
    return "1 run" if number == 1 else f"{number} runs"


def queue(jobs: Sequence[Job]) -> HTMLResponse:
    """Returns the page of the commands that wait, work and ended."""
    body = (
        '<h1>Queue</h1><p class="lead">Commands start one after the other, when no other run works '
        "on this computer. The next one starts also when one fails.</p>"
        + layout.part("jobs", queue_rows(jobs))
    )
    return layout.page("Queue", body, here="Queue", live="/queue/live")


def _name(job: Job) -> str:
    if job.mode == "precompile":  # there is no such run yet
        return escape(job.run)
    return layout.link(layout.url("run", job.run), job.run)


def queue_rows(jobs: Sequence[Job]) -> str:
    """Returns the lines of that page: what works and waits, then what ended, the newest first."""
    waiting = [job for job in jobs if job.state != "ended"]
    ended = [job for job in jobs if job.state == "ended"][::-1]
    if not jobs:
        return "<p>Nothing was started or queued from here yet.</p>"
    rows = []
    for job in [*waiting, *ended[:30]]:
        remove = ""
        if job.state == "queued":
            remove = layout.post("/queue/remove", "Remove", fields={"key": job.key})
        rows.append(
            f'<li class="card job"><div><p>{_name(job)}, '
            f"{escape(job.mode)}: <strong>{escape(job.outcome)}</strong></p>"
            f"<details><summary>Command and output</summary>"
            f"{layout.command(commands.shown(job.arguments))}"
            f"<p>{layout.link(layout.url('queue', job.key), 'Output')}</p></details></div>"
            f"{remove}</li>"
        )
    return f'<ul class="plain">{"".join(rows)}</ul>'
