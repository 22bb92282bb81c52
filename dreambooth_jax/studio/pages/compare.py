"""The page that sets two runs, or two moments of one, side by side."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from starlette.responses import HTMLResponse

from dreambooth_jax.studio import runs
from dreambooth_jax.studio.pages import layout
from dreambooth_jax.studio.runs import Grid, Picture

Side = tuple[str, Path, Sequence[Grid], Grid | None]  # name, folder, all grids, the chosen one
_NOT_TOLD = ("hub.cache_dir", "compile.cache_dir")


def side(name: str, folder: Path, label: str) -> Side:
    """Returns one side: a run with the grid of a label, or else its last one."""
    found = runs.grids(folder)
    own = [grid for grid in found if grid.of_run]
    chosen = next((grid for grid in found if grid.label == label), None)
    return name, folder, found, chosen or (own[-1] if own else None)


def page(names: Sequence[str], a: Side | None, b: Side | None) -> HTMLResponse:
    """Returns the page; without both sides it asks for them."""
    body = "<h1>Compare</h1>" + _chooser(names, a, b)
    if a is not None and b is not None:
        body += _pictures(a, b) + _settings(a, b)
    elif len(names) < 1:
        body += '<p class="lead">There is no run yet.</p>'
    return layout.page("Compare", body, here="Compare")


def _chooser(names: Sequence[str], a: Side | None, b: Side | None) -> str:
    fields = []
    for key, text, own in (("a", "First run", a), ("b", "Second run", b)):
        options = {name: name for name in names}
        fields.append(layout.choice(key, text, options, own[0] if own else ""))
        if own is not None and own[2]:
            moments = {grid.label: grid.title for grid in own[2]}
            label = own[3].label if own[3] else ""
            fields.append(layout.choice(f"{key}_at", f"Moment of {own[0]}", moments, label))
    return (
        f'<form action="/compare" method="get"><div class="grid">{"".join(fields)}</div>'
        '<div class="bar"><button class="main">Show</button></div></form>'
    )


def _pictures(a: Side, b: Side) -> str:
    first, second = a[3], b[3]
    if first is None or second is None:
        empty = a[0] if first is None else b[0]
        return f'<p class="lead">{escape(empty)} has no pictures yet.</p>'
    others = {picture.file: picture for picture in second.pictures}
    pairs = [(each, others[each.file]) for each in first.pictures if each.file in others]
    if not pairs:
        return '<p class="lead">These moments have no picture of the same place in common.</p>'
    shown = "".join(_pair(k, a, b, *pair) for k, pair in enumerate(pairs))
    return f'<section><h2>Pictures</h2><div class="pairs">{shown}</div></section>'


def _pair(k: int, a: Side, b: Side, one: Picture, other: Picture) -> str:
    """Two pictures side by side, and one over the other with a slider between them."""
    assert a[3] is not None and b[3] is not None
    same = one.prompt == other.prompt and one.seed == other.seed
    words = one.prompt if one.prompt == other.prompt else f"{one.prompt} | {other.prompt}"
    note = "" if same else '<p class="small">Not the same prompt and seed.</p>'
    left, right = (
        layout.url("run", each[0], "picture", each[3].label, picture.file, v=each[3].changed)
        for each, picture in ((a, one), (b, other))
        if each[3] is not None
    )
    pixels = " pixels" if max(one.width, one.height) <= 128 else ""
    return (
        f'<div class="card"><h3>{escape(words)}</h3>{note}<div class="two">'
        f"<figure>{layout.shot(a[0], a[3], one)}<figcaption>{escape(a[0])}, "
        f"{escape(a[3].title)}</figcaption></figure>"
        f"<figure>{layout.shot(b[0], b[3], other)}<figcaption>{escape(b[0])}, "
        f"{escape(b[3].title)}</figcaption></figure></div>"
        f"<details><summary>One over the other</summary><figure>"
        f'<div class="wipe{pixels}"><img src="{escape(left)}" alt="{escape(a[0])}" loading="lazy">'
        f'<img src="{escape(right)}" alt="{escape(b[0])}" loading="lazy"></div>'
        f'<div class="bar"><label for="wipe-{k}">Border</label>'
        f'<input id="wipe-{k}" type="range" min="0" max="100" value="0" data-wipe></div>'
        "</figure></details></div>"
    )


def _settings(a: Side, b: Side) -> str:
    left, right = runs.settings(a[1]), runs.settings(b[1])
    rows = [
        (key, str(left.get(key, "")), str(right.get(key, "")))
        for key in sorted(left.keys() | right.keys())
        if left.get(key) != right.get(key) and key not in _NOT_TOLD
    ]
    if not rows:
        return "<section><h2>Settings</h2><p>All settings are the same.</p></section>"
    table = layout.table(("setting", a[0], b[0]), rows, label="Settings that differ")
    return f"<section><h2>Settings that differ</h2>{table}</section>"
