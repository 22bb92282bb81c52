"""The pages of a new run: photos, what they show, the check, the start."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from starlette.responses import HTMLResponse

from dreambooth_jax.data import images
from dreambooth_jax.studio import commands
from dreambooth_jax.studio.pages import layout
from dreambooth_jax.studio.photos import Shown

FORM = {  # the fields of the form with what they hold at first
    "name": "",
    "class_noun": "",
    "identifier": "auto",
    "config": "imagen_like",
    "adapt": "",
    "steps": "",
    "captions": "prompt",
    "masks": "none",
    "prompts": "",
    "more": "",
    "topology": "",
}
_ADAPT = {
    "": "as the configuration says",
    "full": "all weights of the denoiser",
    "lora": "LoRA: a small file beside the base model",
    "textual_inversion": "textual inversion: a new word alone",
    "pivotal": "pivotal tuning: a new word, then the model around it",
}
TOPOLOGIES = {
    "": "none",
    "rtx4090": "GeForce RTX 4090, 24 GB",
    "a100-40gb": "A100, 40 GB",
    "a100-80gb": "A100, 80 GB",
    "h100:1": "H100, 80 GB",
    "h100:8": "8 H100",
    "v5e:2x2": "TPU v5e, 2×2",
    "v6e:2x2": "TPU v6e, 2×2",
}


def start(subjects: Sequence[str], folder: Path) -> HTMLResponse:
    """Returns the first page: whose photos."""
    there = "".join(
        f"<li>{layout.link(layout.url('new', name), name, 'button')}</li>" for name in subjects
    )
    known = f'<h2>Photos that are here</h2><ul class="bar plain">{there}</ul>' if subjects else ""
    body = (
        "<h1>New run</h1>"
        '<p class="lead">3 to 5 photos of one subject: different places and angles, the subject '
        "large and near the middle, nothing else in all of them.</p>"
        '<form method="post" action="/new" class="stack card">'
        + layout.field(
            "subject",
            "Name of a folder for the photos",
            hint=f"Letters, digits, - and _, such as duck. It is made in {folder}.",
        )
        + '<button class="main">Continue</button></form>'
        + known
    )
    return layout.page("New run", body, here="New run")


def form(
    subject: str,
    photos: Sequence[Shown],
    general: Sequence[str],
    values: Mapping[str, str],
    library: Mapping[str, Any],
    size: images.Size,
    *,
    checked: Mapping[str, Any] | None = None,
    forecasts: Sequence[str] = (),
) -> HTMLResponse:
    """Returns the page of a new run of a subject.

    values: what the fields of `FORM` hold. checked: what the check found, see `_checked`.
    forecasts: sentences on devices that were asked about.
    """
    body = (
        f"<h1>New run: {escape(subject)}</h1>"
        + _photos(subject, photos, general, size)
        + f'<form method="post" action="{escape(layout.url("new", subject))}">'
        + _subject(values, photos)
        + _settings(values, library)
        + (_checked(checked) if checked is not None else "")
        + _forecasts(forecasts)
        + '<section><h2>4. Check and start</h2><p class="small">The check reads the settings as '
        'the run will; nothing is loaded or drawn.</p><div class="bar">'
        '<button name="action" value="check">Check</button>'
        '<button name="action" value="forecast">Forecast</button>'
        '<button name="action" value="start" class="main">Start now</button>'
        '<button name="action" value="queue">Queue</button></div></section></form>' + BRUSH
    )
    return layout.page(f"New run: {subject}", body, here="New run")


def _photos(
    subject: str, photos: Sequence[Shown], general: Sequence[str], size: images.Size
) -> str:
    cards = "".join(_card(subject, photo, size) for photo in photos)
    notes = "".join(f'<p class="message">{escape(text)}</p>' for text in general)
    return (
        f"<section><h2>1. Photos</h2>{notes}{drop(subject)}"
        f'<p class="small">Shown is what the model sees, {images.told(size)} pixels.</p>'
        f'<ul class="cards photos">{cards}</ul></section>'
    )


def drop(subject: str) -> str:
    """Returns the field that photos are dropped on."""
    upload = escape(layout.url("new", subject, "photos"))
    return (
        f'<form class="drop" id="drop" method="post" action="{upload}" '
        'enctype="multipart/form-data"><label for="files">Drop photos here, or choose them</label>'
        '<input id="files" type="file" name="photo" multiple accept="image/*">'
        '<button>Add</button><p class="small">Place, camera and time in a file are not kept.</p>'
        "</form>"
    )


def tools(subject: str, photo: Shown) -> str:
    """Returns the buttons that paint a photo's mask and remove the photo."""
    name = photo.name
    mask = layout.url("photos", subject, name, "mask", v=photo.changed) if photo.has_mask else ""
    label = "Change the mask" if photo.has_mask else "Paint a mask"
    return (
        '<div class="bar"><button type="button" data-paint="'
        f'{escape(layout.url("photos", subject, name, small=1, v=photo.changed))}" '
        f'data-mask="{escape(mask)}" '
        f'data-save="{escape(layout.url("new", subject, name, "mask"))}">{label}</button>'
        + layout.post(layout.url("new", subject, name, "remove"), "Remove")
        + "</div>"
    )


def _card(subject: str, photo: Shown, size: images.Size) -> str:
    name = photo.name
    crop = layout.url("photos", subject, name, "crop", size=f"{size[0]}x{size[1]}", v=photo.changed)
    findings = "".join(f"<li>{escape(text)}</li>" for text in photo.findings)
    state = '<span class="badge good">used</span>' if photo.usable else ""
    state = state or '<span class="badge bad">not used</span>'
    pixels = f"{photo.width}×{photo.height}" if photo.width else ""
    mask = layout.url("photos", subject, name, "mask", v=photo.changed) if photo.has_mask else ""
    kind = ' class="pixels"' if max(size) <= 128 else ""
    caption = layout.url("new", subject, name, "caption")
    field = f"caption-{photo.name.replace('.', '-')}"
    over = f'<img class="over" src="{escape(mask)}" alt="">' if mask else ""
    return (
        f'<li class="card photo" data-photo="{escape(name)}"><div class="cropped">'
        f'<img{kind} src="{escape(crop)}" alt="{escape(name)} as the model sees it">{over}</div>'
        f"<p>{escape(name)} {state}</p>"
        f'<p class="small">{pixels}</p>'
        + (f'<ul class="findings small">{findings}</ul>' if findings else "")
        + f'<form method="post" action="{escape(caption)}" class="caption" data-quiet>'
        f'<label for="{field}">Caption of {escape(name)}</label>'
        f'<div class="bar"><input id="{field}" name="caption" value="{escape(photo.caption)}" '
        'placeholder="a {subject} in the garden"><button>Save</button></div></form>'
        + tools(subject, photo)
        + "</li>"
    )


def _subject(values: Mapping[str, str], photos: Sequence[Shown]) -> str:
    masked = sum(photo.has_mask for photo in photos)
    told = sum(bool(photo.caption) for photo in photos)
    return (
        '<section><h2>2. What they show</h2><div class="grid">'
        + layout.field(
            "class_noun",
            "The subject is a …",
            values["class_noun"],
            hint="One noun without article: dog, toy, teapot.",
        )
        + layout.field(
            "identifier",
            "Its own word",
            values["identifier"],
            hint="auto takes a rare word of the model's vocabulary.",
        )
        + layout.field("name", "Name of the run", values["name"], hint="A new folder of this name.")
        + layout.choice(
            "captions",
            "Captions",
            {"prompt": "one prompt for all photos", "files": "those written above"},
            values["captions"],
            hint=f"{told} of {len(photos)} photos have one.",
        )
        + layout.choice(
            "masks",
            "Masks",
            {"none": "not used", "files": "those painted above"},
            values["masks"],
            hint=f"{masked} of {len(photos)} photos have one; each must, where they are used.",
        )
        + "</div></section>"
    )


def _settings(values: Mapping[str, str], library: Mapping[str, Any]) -> str:
    presets = {name: f"{name}: {each['summary']}" for name, each in library["configs"].items()}
    rows = "".join(
        f'<tr data-filter="{escape((each["key"] + " " + each["meaning"]).lower())}">'
        f'<th scope="row"><code>{escape(each["key"])}</code></th>'
        f"<td>{escape(json.dumps(each['default']))}</td><td>{escape(each['meaning'])} "
        f"{escape(each['values'])}</td></tr>"
        for each in library["settings"]
    )
    return (
        '<section><h2>3. How it is trained</h2><div class="grid">'
        + layout.choice("config", "Configuration", presets, values["config"])
        + layout.choice("adapt", "Trained are", _ADAPT, values["adapt"])
        + layout.field(
            "steps", "Steps", values["steps"], kind="number", hint="Empty: the configuration's."
        )
        + layout.choice(
            "topology",
            "Forecast memory and time for",
            TOPOLOGIES,
            values["topology"],
            hint="Compiled for that device by --mode=precompile, in minutes; see the button below.",
        )
        + layout.field(
            "prompts",
            "Prompts to draw on the way",
            values["prompts"],
            lines=4,
            hint="One a line; {subject} is its word and noun. Empty: the configuration's.",
        )
        + layout.field(
            "more",
            "Other settings",
            values["more"],
            lines=4,
            hint="key=value, one a line, such as train.batch_size=2.",
        )
        + '</div><details data-keep="all"><summary>All settings</summary>'
        '<div class="bar"><label for="filter">Search</label>'
        '<input id="filter" type="search" autocomplete="off"></div>'
        '<div class="scroll" tabindex="0" role="region" aria-label="All settings"><table>'
        '<thead><tr><th scope="col">key</th><th scope="col">default</th>'
        f'<th scope="col">meaning</th></tr></thead><tbody>{rows}</tbody></table></div>'
        "</details></section>"
    )


def _checked(found: Mapping[str, Any]) -> str:
    """The outcome of the check.

    found: "problem", "command" (arguments), "steps" by stage, "estimate" (sentences).
    """
    lines = []
    if found.get("problem"):
        text = escape(str(found["problem"]))
        lines.append(f'<pre class="message" tabindex="0" aria-label="Problem">{text}</pre>')
    else:
        lines.append('<p><span class="badge good">the settings fit</span></p>')
    steps = found.get("steps") or {}
    if steps:
        told = ", ".join(f"{stage} {count}" for stage, count in steps.items())
        lines.append(f"<p>Steps: {escape(told)}.</p>")
    lines += [f"<p>{escape(text)}</p>" for text in found.get("estimate", ())]
    if found.get("command"):
        lines.append(layout.command(commands.shown(found["command"])))
    return f'<section id="checked"><h2>The check</h2>{"".join(lines)}</section>'


def _forecasts(told: Sequence[str]) -> str:
    if not told:
        return ""
    rows = "".join(f"<li>{escape(text)}</li>" for text in told)
    return f'<section><h2>Forecasts</h2><ul class="plain">{rows}</ul></section>'


BRUSH = """<dialog id="brush" aria-label="Mask"><p class="small">White is the subject. Draw with
the pointer, or move with the arrow keys and paint with the space bar.</p>
<div class="canvas"><img alt=""><canvas tabindex="0" aria-label="Mask"></canvas></div>
<div class="bar"><label for="brush-size">Brush</label>
<input id="brush-size" type="range" min="2" max="100" value="30">
<label><input type="checkbox" id="brush-erase"> erase</label>
<button type="button" data-brush="undo">Undo</button>
<button type="button" data-brush="clear">Clear</button>
<button type="button" data-brush="fill">Fill</button>
<button type="button" data-brush="save" class="main">Save the mask</button>
<button type="button" data-brush="close">Cancel</button></div></dialog>"""
