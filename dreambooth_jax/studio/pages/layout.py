"""The frame of every page, and the small pieces that several pages are made of."""

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from urllib.parse import quote, urlencode

from starlette.responses import HTMLResponse

from dreambooth_jax.studio.runs import Grid, Picture, State

_WORDS = {
    "new": "not started", "lost": "lost: its process is gone", "running": "running",
    "starting": "starting", "compiling": "compiling", "drawing": "drawing pictures",
    "training": "training", "exporting": "exporting", "evaluating": "scoring",
    "finished": "finished", "stopped": "stopped", "failed": "failed",
}  # fmt: skip
_COLOURS = {"finished": "good", "failed": "bad", "lost": "bad", "stopped": "still", "new": "still"}


def url(*parts: str, **query: object) -> str:
    """Returns an address of this server from its parts, each quoted."""
    path = "/" + "/".join(quote(part, safe="") for part in parts)
    return f"{path}?{urlencode(query)}" if query else path


def link(href: str, text: str, kind: str = "") -> str:
    """Returns a link; `kind` is its class."""
    return f'<a class="{kind}" href="{escape(href)}">{escape(text)}</a>'


def page(
    title: str,
    body: str,
    *,
    here: str = "",
    live: str = "",
    status: int = 200,
) -> HTMLResponse:
    """Returns a whole page.

    here: the entry of the navigation that it belongs to. live: the address of its parts that
      change, which the script asks for again and again.
    """
    entries = (("/", "Runs"), ("/new", "New run"), ("/compare", "Compare"), ("/queue", "Queue"))
    links = "".join(
        f'<li><a href="{href}"{" aria-current=page" if text == here else ""}>{text}</a></li>'
        for href, text in entries
    )
    data = f' data-live="{escape(live)}"' if live else ""
    return HTMLResponse(
        f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)} · studio</title>
<link rel="icon" href="data:,"><link rel="stylesheet" href="/assets/studio.css">
<script src="/assets/studio.js" defer></script></head>
<body{data}><a class="skip" href="#content">Skip to the content</a>
<header class="top"><div class="page"><p class="brand">dreambooth_jax</p>
<nav aria-label="Pages"><ul>{links}</ul></nav></div></header>
<main class="page" id="content" tabindex="-1">{body}</main>
<p id="told" role="status" aria-live="polite"></p>
<dialog id="large" aria-label="Enlarged picture"><img alt=""><p></p>
<div><button type="button" data-to="-1">Previous</button>
<button type="button" data-to="1">Next</button>
<button type="button" data-to="0">Close</button></div></dialog>
</body></html>""",
        status_code=status,
    )


def told(message: str, *, title: str = "Not done", status: int = 400) -> HTMLResponse:
    """Returns a page with one message."""
    body = f'<h1>{escape(title)}</h1><p class="lead">{escape(message)}</p>'
    return page(title, body + f"<p>{link('/', 'All runs', 'button')}</p>", status=status)


def parts(found: Mapping[str, str], seen: str) -> dict[str, list[str]]:
    """Returns the parts of a page that differ from those that were `seen`: {id: [hash, HTML]}.

    seen: "id:hash,id:hash", as the script sends it.
    """
    known = dict(each.partition(":")[::2] for each in seen.split(",") if each)
    changed = {}
    for name, html in found.items():
        digest = hashlib.sha256(html.encode()).hexdigest()[:12]
        if known.get(name) != digest:
            changed[name] = [digest, html]
    return changed


def part(name: str, html: str, kind: str = "") -> str:
    """Returns a part of a page that the script replaces when it changes."""
    digest = hashlib.sha256(html.encode()).hexdigest()[:12]
    return f'<div id="{name}" class="{kind}" data-seen="{digest}">{html}</div>'


def badge(state: State) -> str:
    """Returns the state in a word or two."""
    colour = _COLOURS.get(state.name, "live")
    words = _WORDS.get(state.name, state.name)
    if state.name == "training" and state.stage:
        words = f"training the {state.stage}"
    return f'<span class="badge {colour}">{escape(words)}</span>'


def progress(state: State) -> str:
    """Returns step, bar and time left; "" where no step is known."""
    if not state.steps:
        return ""
    shown = f"{state.part or state.stage}: {state.step} of {state.steps}".lstrip(": ")
    if state.active and state.seconds_left is not None:
        shown += f", {duration(state.seconds_left)} left"
    if state.active and state.seconds_per_step:
        shown += f", {state.seconds_per_step:.3g} s a step"
    if state.loss is not None:
        shown += f", loss {state.loss:.4g}"
    bar = f'<progress max="{state.steps}" value="{state.step}" aria-label="steps"></progress>'
    return f'{bar}<p class="small">{escape(shown)}</p>'


def duration(seconds: float) -> str:
    """Returns seconds as people say them: "40 s", "12 min", "3 h 5 min"."""
    if seconds < 90:
        return f"{max(0, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def ago(stamp: float) -> str:
    """Returns how long ago a time was; "" where it is not known."""
    return f"{duration(time.time() - stamp)} ago" if stamp > 0 else ""


def shot(run: str, grid: Grid, picture: Picture, *, lazy: bool = True) -> str:
    """Returns a picture of a run that a click enlarges."""
    address = url("run", run, grid.place, grid.label, picture.file, v=grid.changed)
    small = address if max(picture.width, picture.height) <= 256 else f"{address}&small=1"
    label = f"{picture.prompt}, {grid.title}"
    kind = "shot pixels" if max(picture.width, picture.height) <= 128 else "shot"
    wait = ' loading="lazy"' if lazy else ""
    return (
        f'<button type="button" class="{kind}" data-large="{escape(address)}" '
        f'data-label="{escape(label)}"><img src="{escape(small)}" alt="{escape(label)}" '
        f'width="{picture.width}" height="{picture.height}"{wait}></button>'
    )


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, label: str) -> str:
    """Returns a table of texts; the first cell of a row names it."""
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in header)
    lines = []
    for first, *rest in rows:
        cells = "".join(f"<td>{escape(text)}</td>" for text in rest)
        lines.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def command(text: str) -> str:
    """Returns a command with a button that copies it."""
    return (
        f'<div class="command"><pre tabindex="0" aria-label="Command">{escape(text)}</pre>'
        '<button type="button" data-copy>Copy</button></div>'
    )


def post(
    action: str, label: str, kind: str = "", *, fields: Mapping[str, str] | None = None
) -> str:
    """Returns a form that is one button."""
    hidden = "".join(
        f'<input type="hidden" name="{escape(k)}" value="{escape(v)}">'
        for k, v in (fields or {}).items()
    )
    return (
        f'<form method="post" action="{escape(action)}">{hidden}'
        f'<button class="{kind}">{escape(label)}</button></form>'
    )


def field(
    name: str, label: str, value: str = "", *, hint: str = "", lines: int = 0, kind: str = "text"
) -> str:
    """Returns a labelled input; of several `lines` a text area."""
    small = f'<small id="{name}-hint">{escape(hint)}</small>' if hint else ""
    about = f' aria-describedby="{name}-hint"' if hint else ""
    if lines:
        box = (
            f'<textarea id="{name}" name="{name}" rows="{lines}"{about}>{escape(value)}</textarea>'
        )
    else:
        more = ' step="any"' if kind == "number" else ""
        box = (
            f'<input id="{name}" name="{name}" type="{kind}" value="{escape(value)}"{about}{more}>'
        )
    return f'<div class="field"><label for="{name}">{escape(label)}</label>{box}{small}</div>'


def choice(
    name: str, label: str, options: Mapping[str, str], value: str = "", *, hint: str = ""
) -> str:
    """Returns a labelled list to choose from: texts by value."""
    small = f'<small id="{name}-hint">{escape(hint)}</small>' if hint else ""
    about = f' aria-describedby="{name}-hint"' if hint else ""
    rows = "".join(
        f'<option value="{escape(key)}"{" selected" if key == value else ""}>'
        f"{escape(text)}</option>"
        for key, text in options.items()
    )
    return (
        f'<div class="field"><label for="{name}">{escape(label)}</label>'
        f'<select id="{name}" name="{name}"{about}>{rows}</select>{small}</div>'
    )
