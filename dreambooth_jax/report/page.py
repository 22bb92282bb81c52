"""Sections to one HTML page, and the page to a file."""

from __future__ import annotations

import base64
import io
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from dreambooth_jax import files
from dreambooth_jax.report import plot
from dreambooth_jax.report.sections import (
    Comparison,
    Curves,
    Gallery,
    Section,
    State,
    Table,
    Text,
)

PIXEL_ART = 96  # px, long side; up to here a picture is kept exact and enlarged pixel by pixel
LONG_SIDES = (1024, 512, 384, 320, 256)  # px, tried in turn until the file is small enough
JPEG_QUALITY = 90
MAX_BYTES = 10_000_000
NUMBER = re.compile(r"[-+−]?\d[\d.,]*(e[-+]?\d+)?(\s?[^\s\d]{1,10})?|nan|[-–]?", re.IGNORECASE)


def build(
    path: str | os.PathLike[str],
    *,
    title: str,
    subtitle: str,
    facts: Sequence[tuple[str, str]],
    sections: Sequence[Section],
    highlight: Sequence[str] = (),
    cover: Sequence[np.ndarray] = (),
    state: State | None = None,
) -> None:
    """Write the report to `path`, whole or not at all; sections with nothing to show are left out.

    `facts` are (name, value) headline numbers. `highlight` are words to mark in title, captions and
    prompts, such as the identifier. `cover` are a few uint8 [H,W,3] pictures beside the title.
    Pictures up to `PIXEL_ART` px stay exact (PNG); larger ones are JPEG, reduced in the steps of
    `LONG_SIDES` while the file is above `MAX_BYTES`. `state` None is a finished run's.

    Raises ValueError when the parts of a section do not fit together or a picture is not uint8
    [H,W,3].
    """
    shown = [section for section in sections if not section.is_empty()]
    for section in shown:
        section.check()
    names = _anchors([section.title for section in shown])
    links = [
        f'<li><a href="#{name}">{escape(section.title)}</a></li>'
        for name, section in zip(names, shown, strict=True)
    ]
    page = b""
    for side in LONG_SIDES:
        drawing = _Drawing(side=side, words=tuple(highlight))
        bodies = [drawing.section(n, s) for n, s in zip(names, shown, strict=True)]
        text = _template().substitute(
            title=escape(title),
            kind=state.name if state else "finished",
            state=_state(state),
            heading=drawing.marked(title),
            subtitle=drawing.marked(subtitle),
            cover=drawing.cover(cover),
            facts=_facts(facts),
            links="\n".join(links),
            sections="\n".join(bodies),
        )
        page = text.encode("utf-8", "replace")  # a file name may hold bytes that are no text
        if len(page) <= MAX_BYTES:
            break
    with files.written(files.at(path)) as part:  # in one move: no reader sees half of it
        part.write_bytes(page)


_KIND = re.compile(rb'<meta name="run-state" content="([a-z]+)">')
_LINE = re.compile(rb'<p id="state".*?</p>', re.DOTALL)


def _state(state: State | None) -> str:
    if state is None:
        return '<p id="state" hidden></p>'
    kind = f'class="state {state.name}" data-written="{state.written:.0f}"'
    return f'<p id="state" {kind}>{escape(state.line)}</p>'


def is_final(path: Path) -> bool:
    """Returns True where `path` is the page of a finished run; older ones name no state."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        found = _KIND.search(file.read(4096))
    return found is None or found[1] == b"finished"


def restate(path: Path, state: State) -> None:
    """Changes the state that a page shows, and nothing else of it."""
    page = path.read_bytes()
    kind, line = f'<meta name="run-state" content="{state.name}">', _state(state)
    page = _KIND.sub(lambda _: kind.encode(), page, count=1)
    page = _LINE.sub(lambda _: line.encode("utf-8", "replace"), page, count=1)
    with files.written(path) as part:
        part.write_bytes(page)


@dataclass(frozen=True)
class _Drawing:
    """HTML of sections; photos are reduced to the long side `side`, `words` are marked."""

    side: int
    words: tuple[str, ...]

    def section(self, name: str, section: Section) -> str:
        """A section with its heading."""
        match section:
            case Gallery():
                body = self.gallery(section)
            case Comparison():
                body = self.comparison(section)
            case Curves():
                body = _curves(section)
            case Table():
                table = _table(section.header, section.rows)
                body = f'<div class="card">{table}{_command(section.command)}</div>'
            case Text():
                body = f'<div class="card">{_text(section)}</div>'
        head = f'<h2 id="{name}--title">{escape(section.title)}</h2>'
        caption = f'<p class="caption">{self.marked(section.caption)}</p>'
        inner = f'{caption if section.caption else ""}<div class="body">{body}</div>'
        if not isinstance(section, Curves) and section.collapsed:
            inner = f"<details><summary>{head}</summary>{inner}</details>"
        else:
            inner = head + inner
        return f'<section id="{name}" aria-labelledby="{name}--title">{inner}</section>'

    def gallery(self, section: Gallery) -> str:
        """Tiles with their labels."""
        count = len(section.images)
        numbered = [f"{section.title}, picture {n} of {count}" for n in range(1, count + 1)]
        tiles = []
        for image, label in zip(section.images, section.labels or numbered, strict=True):
            words = f'<figcaption dir="auto">{self.marked(label)}</figcaption>'
            shot = self.image(image, label, "shot")
            tiles.append(f"<figure>{shot}{words if section.labels else ''}</figure>")
        kind = "gallery" if count <= 8 or section.labels else "gallery dense"
        return f'<div class="{kind}">{"".join(tiles)}</div>'

    def comparison(self, section: Comparison) -> str:
        """A block per prompt, in it a figure per column, in it a picture per seed."""
        blocks = []
        photos = section.photos or [()] * len(section.rows)
        for prompt, row, own in zip(section.rows, section.cells, photos, strict=True):
            figures = []
            if len(own):
                shots = "".join(self.image(i, f"photo of {prompt}", "shot") for i in own)
                words = "<figcaption>photo</figcaption>"
                figures.append(f'<figure>{words}<div class="shots">{shots}</div></figure>')
            for column, cell in zip(section.columns, row, strict=True):
                alts = [f"{prompt} ({column}, {n} of {len(cell)})" for n in range(1, len(cell) + 1)]
                drawn = [self.image(i, a, "shot") for i, a in zip(cell, alts, strict=True)]
                inner = "".join(drawn) or '<span class="none">no picture</span>'
                words = f'<figcaption dir="auto">{escape(column)}</figcaption>'
                shown = f'{words}<div class="shots">{inner}</div>'
                figures.append(f'<figure class="column">{shown}</figure>')
            words = f'<h3 dir="auto">{self.marked(prompt)}</h3>'
            cells = f'<div class="cells">{"".join(figures)}</div>'
            blocks.append(f'<div class="prompt card">{words}{cells}</div>')
        columns = len(section.columns) + any(len(own) for own in photos)
        across = math.ceil(columns / math.ceil(columns / 6))  # at most 6 side by side
        seeds = max(len(cell) for row in section.cells for cell in row)
        square, line = math.ceil(math.sqrt(seeds)), min(seeds, 4)
        wide, narrow = (line if columns <= 2 else square), (line if columns > 3 else square)
        style = f"--cols:{across};--wide:{wide};--narrow:{narrow}"
        kind = "prompts many" if columns > 3 else "prompts"
        kind += " film" if section.slider and len(section.columns) > 1 else ""
        return f'<div class="{kind}" style="{style}">{"".join(blocks)}</div>'

    def cover(self, images: Sequence[np.ndarray]) -> str:
        """Pictures beside the title; they are decoration, so without words."""
        pictures = "".join(self.image(image, "", "") for image in images)
        return f'<div class="cover">{pictures}</div>' if pictures else ""

    def image(self, image: np.ndarray, alt: str, kind: str) -> str:
        """A picture inside the page."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise ValueError(
                f"report: a picture is uint8 [H,W,3], found {image.dtype} {list(image.shape)}; "
                "turn float32 in [-1,1] into it with data.images.to_uint8"
            )
        picture, buffer = Image.fromarray(np.ascontiguousarray(image)), io.BytesIO()
        if max(picture.size) <= PIXEL_ART:
            mime, kind = "image/png", f"pixels {kind}".strip()
            picture.save(buffer, format="PNG", optimize=True)
        else:
            mime = "image/jpeg"
            picture.thumbnail((self.side, self.side), Image.Resampling.LANCZOS)
            picture.save(buffer, format="JPEG", quality=JPEG_QUALITY, optimize=True)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        size = f'width="{picture.width}" height="{picture.height}"'
        return f'<img class="{kind}" src="data:{mime};base64,{data}" alt="{escape(alt)}" {size}>'

    def marked(self, text: str) -> str:
        """Escape a text and mark the chosen words in it."""
        words = [re.escape(word) for word in self.words if word]
        if not words:
            return escape(text)
        parts = re.split(rf"(?<!\w)({'|'.join(words)})(?!\w)", text)  # odd parts are the words
        return "".join(
            f"<mark>{escape(part)}</mark>" if index % 2 else escape(part)
            for index, part in enumerate(parts)
        )


def _template() -> Template:
    return Template(
        resources.files("dreambooth_jax").joinpath("assets", "report.html").read_text("utf-8")
    )


def _anchors(titles: Sequence[str]) -> list[str]:
    """A name for each title, readable where the title is and never the same twice."""
    names: list[str] = []
    for title in titles:
        name = base = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        while name in names or name == "content":  # "content" is the page's own
            name = f"{base}-{int(name.removeprefix(base).strip('-') or 1) + 1}"
        names.append(name)
    return names


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    cards = []
    for name, value in facts:
        kind = ' class="long"' if len(value) > 9 else ""
        cards.append(f"<div{kind}><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>")
    return f'<dl class="facts">{"".join(cards)}</dl>' if cards else ""


def _curves(section: Curves) -> str:
    drawn = plot.draw(
        section.series, log=section.log, x_label=section.x_label, y_label=section.y_label
    )
    scale = " (logarithmic)" if section.log else ""
    notes = [f'<p class="notice">{escape(notice)}.</p>' for notice in drawn.notices]
    if drawn.smoothed:
        about = (
            "Faint: every value. Strong, and in the table: the mean over a twentieth of the line."
        )
        notes.insert(0, f'<p class="axis note">{about}</p>')
    return (
        f'<div class="curves card"><p class="axis">{escape(section.y_label)}{scale}</p>'
        f'<div class="plot">{drawn.svg}</div><p class="axis x">{escape(section.x_label)}</p>'
        f"{_table(['line', 'start', 'end', 'lowest'], drawn.legend, keys=drawn.keys)}"
        f"{''.join(notes)}</div>"
    )


def _command(line: str) -> str:
    return f'<pre class="text command" tabindex="0">{escape(line)}</pre>' if line else ""


def _text(section: Text) -> str:
    if section.preformatted:
        return f'<pre class="text" tabindex="0">{escape(section.body.strip(chr(10)))}</pre>'
    paragraphs = re.split(r"\n\s*\n", section.body.strip())
    return f'<div class="text">{"".join(f"<p>{escape(p)}</p>" for p in paragraphs)}</div>'


def _table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, keys: Sequence[str] = ()
) -> str:
    """A table whose first column names its rows; columns of nothing but numbers are set right.

    `keys` are colour keys shown before the names: the table is a legend then.
    """
    columns = list(zip(*rows, strict=True))
    right = [bool(header) and all(NUMBER.fullmatch(cell) for cell in c) for c in columns]
    kinds = [' class="number"' if numeric else "" for numeric in right]
    heads = [f'<th scope="col"{k}>{escape(h)}</th>' for k, h in zip(kinds, header, strict=False)]
    body = []
    for index, (first, *rest) in enumerate(rows):
        key = f'<span class="key {keys[index]}"></span>' if keys else ""
        cells = [f"<td{k}>{escape(cell)}</td>" for k, cell in zip(kinds[1:], rest, strict=True)]
        body.append(f'<tr><th scope="row">{key}{escape(first)}</th>{"".join(cells)}</tr>')
    kind = ' class="legend"' if keys else ""
    head = f"<thead><tr>{''.join(heads)}</tr></thead>" if heads else ""
    table = f"<table{kind}>{head}<tbody>{''.join(body)}</tbody></table>"
    return f'<div class="scroll" tabindex="0">{table}</div>'
