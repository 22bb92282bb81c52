"""The report: read back with an HTML parser, and where there is a browser, laid out by it."""

from __future__ import annotations

import base64
import io
import math
import os
import re
import subprocess
from html import escape
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import browser
import numpy as np
import pytest
from PIL import Image

from dreambooth_jax import report
from dreambooth_jax.report import plot

VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source", "wbr"}
EVIL = "<script>alert(\"1\")</script> & 'q' ${title} $x </style>"


class Page(HTMLParser):
    """Every element as (tag, attributes, text inside it); tags must close in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self.open: list[int] = []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {[self.elements[n][0] for n in self.open]}"

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} has an attribute twice: {names}"
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        opened = self.elements[self.open[-1]][0] if self.open else "nothing"
        assert tag == opened, f"</{tag}> where {opened} is open"
        self.open.pop()

    def handle_data(self, data):
        for n in self.open:
            self.elements[n][2].append(data)

    def all(self, tag: str, kind: str = "") -> list[tuple[dict[str, str], str]]:
        """Attributes and text of each such element, of the class `kind` if given."""
        return [
            (attributes, "".join(text))
            for name, attributes, text in self.elements
            if name == tag and (not kind or kind in attributes.get("class", "").split())
        ]

    def texts(self, tag: str, kind: str = "") -> list[str]:
        return [text for _, text in self.all(tag, kind)]


def picture(seed: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def everything(word: str = "a zib bird") -> list[report.Section]:
    """One section of each kind, `word` in every place that takes text."""
    return [
        report.Gallery(word, word, [picture(0), picture(1)], [word, "two"]),
        report.Comparison(
            word,
            word,
            [word, "a bird"],
            ["before", word],
            [[[picture(2), picture(3)], [picture(4)]], [[], [picture(5)]]],
        ),
        report.Curves(word, word, {word: [(0, 1.0), (1, math.nan)]}, x_label=word, y_label=word),
        report.Table(word, word, [("a", word), (word, "b")]),
        report.Table(word, word, [("a", word), (word, "b")], header=(word, "c"), collapsed=True),
        report.Text(word, word, word),
        report.Text(word, word, preformatted=True, collapsed=True),
    ]


def write(path: Path, sections, **kwargs) -> tuple[Page, str]:
    settings = {"title": "a title", "subtitle": "a subtitle", "facts": [("steps", "100")]}
    report.build(path, sections=sections, **(settings | kwargs))
    text = path.read_text("utf-8")
    return Page(text), text


def pixels(source: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split("base64,")[1]))))


def test_the_file_needs_nothing_outside_itself(tmp_path):
    page, text = write(tmp_path / "report.html", everything(), cover=[picture(9)])
    for tag, attributes, _ in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "poster", "action", "data"):
            value = attributes.get(name, "data:")
            assert value.startswith(("data:", "#")), f"<{tag} {name}={value[:60]!r}>"
    assert "://" not in text
    assert "@import" not in text
    assert "url(" not in text
    policy = next(a["content"] for a, _ in page.all("meta") if "http-equiv" in a)
    assert "default-src 'none'" in policy
    assert "img-src data:" in policy
    assert [a["name"] for a, _ in page.all("meta") if a.get("name") == "viewport"]


def test_links_lead_to_sections_and_no_name_is_used_twice(tmp_path):
    titles = ["Loss", "Loss", "loss 2", "損失", "Content", "Loss", "Loss title"]
    page, _ = write(tmp_path / "r.html", [report.Text(title, "x") for title in titles])
    names = [a["id"] for _, a, _ in page.elements if "id" in a]
    assert len(names) == len(set(names))
    links = [a["href"][1:] for a, _ in page.all("a") if "class" not in a]
    assert links == [a["id"] for a, _ in page.all("section")]
    assert len(links) == len(titles)
    assert page.texts("h2") == titles
    assert all(a["aria-labelledby"] in names for a, _ in page.all("section"))


def test_every_text_is_shown_and_none_is_markup(tmp_path):
    page, _ = write(
        tmp_path / "r.html",
        everything(EVIL),
        title=EVIL,
        subtitle=EVIL,
        facts=[(EVIL, EVIL)],
        highlight=[EVIL],
    )
    plain, _ = write(tmp_path / "plain.html", everything())
    # The same elements as with harmless words (marks aside): no text has become a tag.
    shape = [tag for tag, _, _ in page.elements if tag != "mark"]
    assert shape == [tag for tag, _, _ in plain.elements]
    assert not [n for _, a, _ in page.elements for n in a if n.startswith("on")]
    for tag in ("title", "h1", "h2", "h3", "dt", "dd", "th", "td", "pre", "mark"):
        assert EVIL in page.texts(tag), tag
    assert page.texts("p", "caption").count(EVIL) == 6
    assert {EVIL, "before"} <= set(page.texts("figcaption"))
    assert any(EVIL in label for label in (a.get("aria-label", "") for a, _ in page.all("svg")))
    assert page.all("img")[0][0]["alt"] == EVIL


def test_each_prompt_heads_its_pictures_in_order(tmp_path):
    images = [[[picture(10 * r + c)] for c in range(3)] for r in range(2)]
    section = report.Comparison("T", "", ["a zib", "a bird"], ["0", "50", "100"], images)
    page, _ = write(tmp_path / "r.html", [section])
    assert page.texts("h3") == ["a zib", "a bird"]
    assert page.texts("figcaption") == ["0", "50", "100"] * 2
    found, flat = page.all("img"), [cell[0] for row in images for cell in row]
    assert [a["alt"] for a, _ in found] == [
        f"{prompt} ({column}, 1 of 1)" for prompt in section.rows for column in section.columns
    ]
    for (attributes, _), image in zip(found, flat, strict=True):
        np.testing.assert_array_equal(pixels(attributes["src"]), image)


def test_small_pictures_are_exact_and_large_ones_are_close(tmp_path):
    small = picture(0, 64, 48)
    y, x = np.mgrid[0:300, 0:400]
    large = np.stack([y * 255 // 300, x * 255 // 400, (x + y) * 255 // 700], -1).astype(np.uint8)
    page, _ = write(tmp_path / "r.html", [report.Gallery("G", "", [small, large[:, ::-1]])])
    (first, _), (second, _) = page.all("img")
    np.testing.assert_array_equal(pixels(first["src"]), small)
    assert first["src"].startswith("data:image/png;")
    assert "pixels" in first["class"].split()
    assert (first["width"], first["height"]) == ("48", "64")
    assert second["src"].startswith("data:image/jpeg;")
    assert "pixels" not in second["class"].split()
    assert (second["width"], second["height"]) == ("400", "300")
    # A smooth picture at JPEG quality 90 stays within a few levels of 255.
    error = np.abs(pixels(second["src"]).astype(int) - large[:, ::-1])
    assert error.mean() < 2


def test_photos_shrink_until_the_file_is_small_enough(tmp_path, monkeypatch):
    photos = [picture(n, 512, 512) for n in range(4)]  # noise: the worst case for JPEG
    section = report.Gallery("G", "", [*photos, picture(9)])
    sizes = []
    for limit in (10_000_000, 1_000_000, 400_000):
        monkeypatch.setattr(report.page, "MAX_BYTES", limit)
        page, _ = write(tmp_path / "r.html", [section])
        assert (tmp_path / "r.html").stat().st_size <= limit
        sizes.append(int(page.all("img")[0][0]["width"]))
        np.testing.assert_array_equal(pixels(page.all("img")[-1][0]["src"]), picture(9))
    assert sizes[0] == 512
    assert sizes[0] > sizes[1] > sizes[2] >= 256


def test_sections_with_nothing_to_show_are_left_out(tmp_path):
    empty = [
        report.Gallery("G", "c", []),
        report.Comparison("C", "c", [], [], []),
        report.Comparison("C", "c", ["p"], ["a", "b"], [[[], []]]),
        report.Curves("L", "c", {}),
        report.Curves("L", "c", {"loss": []}),
        report.Table("T", "c", []),
        report.Text("X", " \n"),
    ]
    page, _ = write(tmp_path / "r.html", [*empty, report.Text("Kept", "x")], facts=[])
    assert page.texts("h2") == ["Kept"]
    assert len(page.all("li")) == 1
    assert not page.all("dl")
    write(tmp_path / "none.html", [])


def test_parts_that_do_not_fit_are_refused(tmp_path):
    image = picture(0)
    for section, words in (
        (report.Gallery("G", "", [image], ["a", "b"]), "1 images but 2 labels"),
        (report.Comparison("C", "", ["p", "q"], ["a"], [[[image]]]), r"\[1, 1\], found \[1\]"),
        (report.Table("T", "", [("a", "b"), ("a",)]), r"\[1, 2\] cells"),
        (report.Table("T", "", [("a", "b")], header=("x",)), r"\[1, 2\] cells"),
        (report.Gallery("G", "", [image / 255]), r"float64 \[8, 8, 3\].*to_uint8"),
        (report.Gallery("G", "", [image[..., 0]]), r"uint8 \[8, 8\]"),
        (report.Curves("L", "", {"loss": [(math.nan, 1.0)]}), "'loss' has the step nan"),
    ):
        with pytest.raises(ValueError, match=words):
            write(tmp_path / "r.html", [section])


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "report.html"
    write(path, everything())
    first = path.read_bytes()
    write(path, everything())
    assert path.read_bytes() == first  # the same run gives the same file
    with pytest.raises(ValueError, match="float32"):
        write(path, [report.Gallery("G", "", [picture(0).astype(np.float32)])])

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        write(path, [report.Text("new", "new")])
    assert path.read_bytes() == first
    assert os.listdir(path.parent) == ["report.html"]


def test_the_identifier_is_marked_as_a_word(tmp_path):
    section = report.Comparison("T", "", ["a zib bird, zibber (zib)"], ["x"], [[[picture(0)]]])
    page, _ = write(tmp_path / "r.html", [section], highlight=["zib"], title="a zib")
    assert page.texts("mark") == ["zib"] * 3  # two in the prompt, one in the title
    assert page.texts("h3") == ["a zib bird, zibber (zib)"]
    assert page.texts("title") == ["a zib"]


def test_tables_have_headers_and_numbers_stand_right(tmp_path):
    rows = [("train", "1,204.4 s", "on 8"), ("sample", "12 s", "CPU")]
    page, _ = write(tmp_path / "r.html", [report.Table("T", "", rows, header=("a", "b", "c"))])
    heads = page.all("th")
    assert [(a["scope"], text) for a, text in heads] == [
        *[("col", text) for text in "abc"],
        ("row", "train"),
        ("row", "sample"),
    ]
    assert page.texts("td", "number") == ["1,204.4 s", "12 s"]
    assert heads[1][0]["class"] == "number"
    hidden, _ = write(tmp_path / "r.html", [report.Table("T", "", rows, collapsed=True)])
    assert len(hidden.all("details")) == 1
    assert hidden.texts("td") == [c for r in rows for c in r[1:]]


def test_text_keeps_its_paragraphs_or_its_columns(tmp_path):
    body = "one  two\nthree\n\nfour <b>"
    page, _ = write(
        tmp_path / "r.html", [report.Text("A", body), report.Text("B", body, preformatted=True)]
    )
    assert page.texts("pre") == [body]
    assert [text for text in page.texts("p") if "one" in text or "four" in text] == [
        "one  two\nthree",
        "four <b>",
    ]


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "values", [[math.nan, math.nan], [2.0], [2.0, 2.0], [1e30, 1e30], [-1.0, 0.0]]
)
def test_degenerate_lines_are_drawn_without_complaint(values, log, tmp_path):
    section = report.Curves("L", "", {"loss": list(enumerate(values))}, log=log)
    page, _ = write(tmp_path / "r.html", [section])
    svg = page.all("polyline") + page.all("path")
    assert svg
    assert not any("nan" in str(a).lower() for a, _ in svg)


def test_series_picks_scalars_by_name():
    records = [
        {"step": 1, "loss/subject": 0.5, "loss/prior": 0.25, "time": 7.0},
        {"step": 2, "loss/subject": None, "note": "text is not asked for"},
    ]
    found = report.series(records, "loss/*")
    assert found["loss/prior"] == [(1.0, 0.25)]
    assert set(found) == {"loss/subject", "loss/prior"}
    assert found["loss/subject"][0] == (1.0, 0.5)
    assert math.isnan(found["loss/subject"][1][1])


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb" (WCAG 2.2)."""
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colours_have_contrast_by_day_and_by_night():
    text = resources.files("dreambooth_jax").joinpath("assets/report.html").read_text("utf-8")
    palettes = [dict(re.findall(r"--([\w-]+): (#\w{6})", p)) for p in text.split("@media")[:2]]
    assert len(palettes) == 2
    assert palettes[0]["paper"] != palettes[1]["paper"]
    for palette in palettes:
        lines = [(f"s{n}", "card", 3.0) for n in range(plot.COLOURS)]
        words = [(i, ground, 4.5) for i in ("ink", "muted", "bad") for ground in ("paper", "card")]
        for front, back, least in [*lines, *words, ("marker-ink", "marker", 4.5)]:
            light, dark = sorted((luminance(palette[front]), luminance(palette[back])))[::-1]
            assert (light + 0.05) / (dark + 0.05) >= least, (front, back, palette)


@pytest.mark.skipif(
    browser.PROGRAM is None, reason=f"lays the page out in one of {browser.NAMES}: none found"
)
def test_nothing_hangs_over_the_edge_of_a_phone_or_a_screen(tmp_path):
    """The page in frames as wide as a phone and a screen; each must not be wider than its frame."""
    long = "a zib " + "unbreakably" * 12
    sections = [
        *everything(long),
        report.Comparison(
            "Steps", "", [long], list("123456789"), [[[picture(n)] * 4 for n in range(9)]]
        ),
        report.Gallery("Many", "", [picture(n) for n in range(20)]),
        report.Table("Wide", "", [[long] * 6], header=list("abcdef")),
        report.Text("Long", long * 3, preformatted=True),
        report.Curves("Loss", "", {f"{long}/{n}": [(0, n), (1e6, 1e9)] for n in range(7)}),
    ]
    facts = [(long, long), *[("steps", "1,000")] * 7]
    _, text = write(tmp_path / "r.html", sections, facts=facts, title=long, cover=[picture(0)] * 4)
    frames = [(390, 844), (300, 600), (1400, 1000)]
    wrapper = tmp_path / "frames.html"
    wrapper.write_text(
        "".join(
            f'<iframe width="{w}" height="{h}" style="border:0" srcdoc="{escape(text)}"></iframe>'
            for w, h in frames
        )
        + "<script>onload = () => document.body.dataset.found = [...document.querySelectorAll("
        "'iframe')].map(f => [f.contentWindow.innerWidth, f.contentDocument.documentElement"
        ".scrollWidth, [...f.contentDocument.images].filter(i => i.naturalWidth).length])</script>",
        "utf-8",
    )
    command = [browser.PROGRAM, *browser.FLAGS, "--dump-dom", "--virtual-time-budget=3000"]
    command += [f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run([*command, wrapper.as_uri()], capture_output=True, timeout=120)
    found = re.search(r'data-found="([\d,]+)"', done.stdout.decode("utf-8", "replace"))
    assert found, done.stderr.decode("utf-8", "replace")[-2000:]
    numbers = np.array([int(n) for n in found[1].split(",")]).reshape(-1, 3)
    assert numbers[:, 0].tolist() == [w for w, _ in frames]
    assert numbers[:, 1].tolist() == [w for w, _ in frames]
    assert (numbers[:, 2] == text.count("<img")).all()  # every picture can be decoded
