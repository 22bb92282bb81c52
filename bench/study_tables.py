"""Means of the study's measures with intervals, and what they say about the paper, in Markdown.

Not a command: `study.py` prints what is made here.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from study_jury import APPLICATION, DIV, DRIFT, PRES, PROMPT, SUBJECT, Worth

from dreambooth_jax.evaluate import measures

Key = tuple[str, int]  # subject, seed
UNDECIDED = "not decided"
HEADS = {
    SUBJECT: "subject ↑",
    PROMPT: "prompt, % ↑",
    APPLICATION: "application, % ↑",
    PRES: "PRES ↓",
    DIV: "DIV ↑",
    DRIFT: "drift ↓",
}
PERCENT = (PROMPT, APPLICATION)
# Table of the paper -> arms that it compares.
TABLES = {
    "Table 1: the method": ("DreamBooth", "textual inversion"),
    "Table 1 after three times the steps": ("longer", "longer, textual inversion"),
    "Table 3: class images": ("DreamBooth", "no class images", "prior by prediction"),
    "Table 4: the class noun": ("DreamBooth", "wrong noun", "no noun", "no class images"),
    "Table 5: number of photos": (
        *(f"{count} of 5 photos" for count in (1, 2, 3, 4)),
        "DreamBooth",
    ),
    "The subject's word": ("DreamBooth", "common word", "random letters"),
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """What the paper found: `measure` of arm `a` is larger than of arm `b`."""

    text: str
    measure: str
    a: str
    b: str


FINDINGS = (
    Finding("DreamBooth is nearer to the subject than textual inversion", SUBJECT,
            "DreamBooth", "textual inversion"),
    Finding("DreamBooth follows prompts better than textual inversion", PROMPT,
            "DreamBooth", "textual inversion"),
    Finding("the first, after three times the steps", SUBJECT,
            "longer", "longer, textual inversion"),
    Finding("the second, after three times the steps", PROMPT,
            "longer", "longer, textual inversion"),
    Finding("class images keep the class from looking like the subject (PRES)", PRES,
            "no class images", "DreamBooth"),
    Finding("class images keep pictures diverse (DIV)", DIV, "DreamBooth", "no class images"),
    Finding("class images cost some likeness to the subject", SUBJECT,
            "no class images", "DreamBooth"),
    Finding("they cost some, after three times the steps", SUBJECT,
            "longer, no class images", "longer"),
    Finding("class images keep other nouns as they were (drift)", DRIFT,
            "no class images", "DreamBooth"),
    Finding("prior by prediction keeps the class from looking like the subject, too", PRES,
            "no class images", "prior by prediction"),
    Finding("it keeps pictures diverse, too", DIV, "prior by prediction", "no class images"),
    Finding("DreamBooth renders materials and styles better than textual inversion", APPLICATION,
            "DreamBooth", "textual inversion"),
    Finding("the right noun is nearer to the subject than a wrong one", SUBJECT,
            "DreamBooth", "wrong noun"),
    Finding("the right noun is nearer to the subject than none", SUBJECT, "DreamBooth", "no noun"),
    Finding("the same, both without class images", SUBJECT, "no class images", "no noun"),
    Finding("five photos are nearer to the subject than one", SUBJECT,
            "DreamBooth", "1 of 5 photos"),
    Finding("a rare word is nearer to the subject than a common one", SUBJECT,
            "DreamBooth", "common word"),
    Finding("a rare word follows prompts better than a common one", PROMPT,
            "DreamBooth", "common word"),
    Finding("a rare word is nearer to the subject than random letters", SUBJECT,
            "DreamBooth", "random letters"),
    Finding("a rare word follows prompts better than random letters", PROMPT,
            "DreamBooth", "random letters"),
)  # fmt: skip


class Found:
    """What finished trials are worth: measures by arm, grid, and (subject, seed)."""

    def __init__(self) -> None:
        self._worth: dict[tuple[str, str], dict[Key, Mapping[str, float]]] = {}

    def add(self, subject: str, seed: int, arm: str, worth: Worth) -> None:
        """Takes one trial's."""
        for grid, found in worth.items():
            self._worth.setdefault((arm, grid), {})[subject, seed] = found

    def grids(self, arm: str) -> dict[int, str]:
        """What an arm drew on the way, "base-000060", by optimizer step."""
        names = sorted(grid for own, grid in self._worth if own == arm)
        return {int(name[5:]): name for name in names if name.startswith("base-")}

    def of(self, arm: str, grid: str = "after") -> Mapping[Key, Mapping[str, float]]:
        """Measures by subject and seed, none where the arm has no finished trial."""
        return self._worth.get((arm, grid), {})

    def mean(self, arm: str, measure: str, grid: str = "after") -> measures.Estimate | None:
        """Of an arm's trials; None where there are none."""
        values = {key: own[measure] for key, own in self.of(arm, grid).items() if measure in own}
        return _estimate(values)

    def difference(
        self, measure: str, a: str, b: str, grids: tuple[str, str] = ("after", "after")
    ) -> measures.Estimate | None:
        """Of arm `a` less arm `b`, over the subjects and seeds that both have."""
        return _estimate(self.differences(measure, a, b, grids))

    def differences(
        self, measure: str, a: str, b: str, grids: tuple[str, str] = ("after", "after")
    ) -> dict[Key, float]:
        """The same of each subject and seed."""
        first, second = self.of(a, grids[0]), self.of(b, grids[1])
        return {
            key: first[key][measure] - second[key][measure]
            for key in first
            if key in second and measure in first[key] and measure in second[key]
        }


def _estimate(values: Mapping[Key, float]) -> measures.Estimate | None:
    if not values:
        return None
    subjects = [subject for subject, _ in values]
    return measures.Bootstrap().each(np.array(list(values.values())), subjects)


def _shown(found: measures.Estimate | None, measure: str, *, sign: str = "") -> str:
    if found is None:
        return ""
    digits = 1 if measure in PERCENT else 3
    low, high = (f"{bound:.{digits}f}" for bound in (found.low, found.high))
    return f"{found.value:{sign}.{digits}f} [{low}, {high}]"


def _row(first: str, cells: list[str]) -> str:
    return f"| {first} | " + " | ".join(cells) + " |"


def _header(first: str, heads: list[str]) -> list[str]:
    return [_row(first, heads), "|---" * (len(heads) + 1) + "|"]


def report(found: Found) -> str:
    """Everything, as Markdown."""
    lines: list[str] = []
    for title, arms in TABLES.items():
        present = [arm for arm in arms if found.of(arm)]
        if not present:
            continue
        lines += [f"### {title}", "", *_header("", ["trials", *HEADS.values()])]
        if title == "Table 1: the method":
            photos = _shown(found.mean("DreamBooth", SUBJECT, "photos"), SUBJECT)
            lines.append(
                _row("the photos among themselves", [""] + [photos] + [""] * (len(HEADS) - 1))
            )
            cells = [_shown(found.mean("DreamBooth", m, "before"), m) for m in HEADS]
            lines.append(_row("untouched", [str(len(found.of("DreamBooth"))), *cells]))
        for arm in present:
            cells = [_shown(found.mean(arm, measure), measure) for measure in HEADS]
            lines.append(_row(arm, [str(len(found.of(arm))), *cells]))
        lines.append("")
    lines += _steps(found)
    heads = ["difference", "here", "trials", "subjects that would decide"]
    lines += ["### What holds", "", *_header("finding of the paper", heads)]
    for finding in FINDINGS:
        differences = found.differences(finding.measure, finding.a, finding.b)
        difference = _estimate(differences)
        if difference is not None:
            shown = _shown(difference, finding.measure, sign="+")
            count = subjects_that_decide(differences) if verdict(difference) == UNDECIDED else None
            cells = [shown, verdict(difference), f"{len(differences)}", f"{count or ''}"]
            lines.append(_row(finding.text, cells))
    return "\n".join(lines)


def subjects_that_decide(differences: Mapping[Key, float]) -> int | None:
    """How many subjects it takes that an interval of 95 % excludes 0 in 80 % of studies.

    `((1.96 + 0.84) · spread / mean)²`, of the means over each subject's seeds: more seeds of the
    same subjects do not narrow what subjects differ by. None of one subject, or a mean of 0.
    """
    of_each: dict[str, list[float]] = {}
    for (subject, _), value in differences.items():
        of_each.setdefault(subject, []).append(value)
    means = np.array([np.mean(values) for values in of_each.values()])
    if len(means) < 2 or means.mean() == 0:
        return None
    return int(np.ceil(((1.96 + 0.84) * means.std(ddof=1) / means.mean()) ** 2))


def verdict(difference: measures.Estimate) -> str:
    """What an interval says about a difference that should be above 0."""
    if difference.low > 0:
        return "holds"
    return "the reverse" if difference.high < 0 else UNDECIDED


def _steps(found: Found) -> list[str]:
    """A table by step of the longer arms, and the first step at which prompts are followed less."""
    lines: list[str] = []
    for arm in ("longer", "longer, no class images"):
        steps = found.grids(arm)
        if not steps:
            continue
        lines += [f"### Steps: {arm.removeprefix('longer').strip(', ') or 'with class images'}", ""]
        lines += _header("step", ["trials", *HEADS.values(), "prompt − untouched, %"])
        forgotten = None
        for step, grid in {0: "before", **steps}.items():
            cells = [_shown(found.mean(arm, measure, grid), measure) for measure in HEADS]
            lost = found.difference(PROMPT, arm, arm, (grid, "before"))
            if lost is not None and lost.high < 0 and forgotten is None:
                forgotten = step
            trend = _shown(lost, PROMPT, sign="+") if step else ""
            lines.append(_row(f"{step}", [f"{len(found.of(arm, grid))}", *cells, trend]))
        best = max(steps, key=lambda step: found.mean(arm, SUBJECT, steps[step]) or (0,))
        since = f"at step {forgotten} for the first time" if forgotten else "at no step"
        nearest = f"Nearest to the subject at step {best}; prompts are followed less than by the"
        lines += ["", f"{nearest} untouched model {since}.", ""]
    return lines
