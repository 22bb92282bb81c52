"""Files of prompts, one a line: `prompt | negative | seed | HEIGHTxWIDTH`, cut short anywhere.

Empty lines and those that begin with `#` are left out.
"""

import dataclasses
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dreambooth_jax import untrusted
from dreambooth_jax.data.images import LARGEST

Size = tuple[int, int]  # height and width in pixels
LIMIT = 4 * 2**20  # bytes of such a file
_TOLD, _SHOWN = 20, 60  # problems in one message, characters of what was found
_END = re.compile(r"\r\n|\r|\n")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_FORM = "prompt | negative | seed | HEIGHTxWIDTH"


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the file.

    negative: None where the line has none; seed: of its first picture, or None; size: height and
    width in pixels, or None; number: of the line, from 1.
    """

    prompt: str
    negative: str | None
    seed: int | None
    size: Size | None
    number: int

    def with_words(self, words: Mapping[str, str]) -> "Line":
        """The line with these words in the place of its braces."""
        filled = self.prompt.format(**words)
        negative = None if self.negative is None else self.negative.format(**words)
        return dataclasses.replace(self, prompt=filled, negative=negative)


def read(file: Path, *, fields: Sequence[str]) -> tuple[Line, ...]:
    """The lines of a file; `fields` are the words that may stand in braces.

    Raises:
      FileError: all lines that are wrong, in one message; or there is no prompt at all, it is no
        text, or of more than `LIMIT` bytes.
      OSError: it cannot be read.
    """
    text = untrusted.text(file, limit=LIMIT, encoding="utf-8-sig")
    lines: list[Line] = []
    problems: list[str] = []
    for number, content in enumerate(_END.split(text), start=1):
        if not content.strip() or content.lstrip().startswith("#"):
            continue
        line = _parsed(content, number)
        found = [line] if isinstance(line, str) else [*_wrong_braces(line, fields)]
        problems += [f"line {number}: {each}" for each in found]
        lines += [] if isinstance(line, str) else [line]
    if not lines and not problems:
        problems = ["it has no prompt; expected one a line"]
    if problems:
        more = len(problems) - _TOLD
        told = [*problems[:_TOLD], *([f"and {more} more"] if more > 0 else [])]
        listed = "\n  ".join(told)
        raise untrusted.FileError(f"{file} is no list of prompts, {_FORM}:\n  {listed}")
    return tuple(lines)


def _parsed(content: str, number: int) -> Line | str:
    """A line, or what is wrong with it."""
    if control := _CONTROL.search(content):
        return f"found the control character U+{ord(control[0]):04X}, expected text"
    parts = [part.strip() for part in content.split("|")]
    if len(parts) > 4:
        return f"found {len(parts)} parts, expected at most 4: {_FORM}"
    prompt, negative, seed, size = [*parts, *[""] * (4 - len(parts))]
    if not prompt:
        return "found no prompt before the first |"
    if seed and not (re.fullmatch("0*[0-9]{1,10}", seed) and int(seed.lstrip("0") or 0) < 2**32):
        return f"found the seed {_short(seed)}, expected a whole number from 0 to 4294967295"
    sides = re.fullmatch(r"([0-9]{1,5})\s*[x×]\s*([0-9]{1,5})", size)
    if size and not (sides and all(0 < int(side) <= LARGEST for side in sides.groups())):
        return (
            f"found the size {_short(size)}, expected HEIGHTxWIDTH in pixels up to {LARGEST}, such "
            "as 768x512"
        )
    return Line(
        prompt=prompt,
        negative=negative or None,
        seed=int(seed.lstrip("0") or 0) if seed else None,
        size=(int(sides[1]), int(sides[2])) if sides else None,
        number=number,
    )


def _wrong_braces(line: Line, fields: Sequence[str]) -> Iterator[str]:
    """Yields what is wrong with the braces of a line."""
    expected = f"expected only {', '.join(f'{{{name}}}' for name in fields)}"
    for text in (line.prompt, line.negative or ""):
        try:
            parsed = [*string.Formatter().parse(text)]
        except ValueError as error:
            yield f"{_short(text)}: {error}; write {{{{ or }}}} for a brace that is meant"
            continue
        for _, field, form, conversion in parsed:
            if field is not None and (field not in fields or form or conversion):
                yield f"found {{{_short(field)[1:-1]}}}, {expected}"


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")
