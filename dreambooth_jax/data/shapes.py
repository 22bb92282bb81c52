"""Shapes of about equal area, in which photos of any aspect are trained, and the shape of a step.

Pure: everything follows from sizes, counts, the seed and the step alone.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dreambooth_jax.data.images import Size

if TYPE_CHECKING:
    from dreambooth_jax.data.batches import SubjectBatches

# The longer side over the shorter one, at most: of films and phones. Its root is 4:3, of cameras.
WIDEST = 16 / 9


def of_area(size: Size, *, multiple: int, count: int, most: int | None = None) -> tuple[Size, ...]:
    """Returns `count` shapes of about the area of `size`, which is one of them, from tall to wide.

    Their aspects are spread evenly, by ratio, from 9:16 to 16:9: five are near 9:16, 3:4, 1:1, 4:3
    and 16:9. No area is larger than that of `size`. There are fewer where that many do not exist.

    Args:
      size: height and width.
      multiple: of which every side is one (`size` is taken as it is).
      count: odd: `size`, and as many taller as wider ones.
      most: the longest side allowed.

    Raises:
      ValueError: `count` is even, or less than 1.
    """
    if count < 1 or count % 2 == 0:
        raise ValueError(f"count = {count}: expected an odd number of shapes, such as 5")
    found = {size}
    possible = _possible(size[0] * size[1], multiple, most)
    half = count // 2
    for k in range(1, half + 1):
        step = k / half * math.log(WIDEST)
        for target in (-step, step):
            # Of two as near the one of the same turn: tall and wide shapes come in pairs.
            found.add(
                min(
                    possible,
                    key=lambda each: (round(abs(_log_aspect(each) - target), 9), max(each)),
                    default=size,
                )
            )
    return tuple(sorted(found, key=lambda each: (_log_aspect(each), each)))


def _log_aspect(size: Size) -> float:
    return math.log(size[1] / size[0])


def _possible(area: int, multiple: int, most: int | None) -> list[Size]:
    """Every shape that is not narrower than 9:16, as large as `area` and `multiple` allow."""
    longest = math.isqrt(int(area * WIDEST))
    longest = longest if most is None else min(longest, most)
    found = []
    for long in range(multiple, longest + 1, multiple):
        short = area // long // multiple * multiple
        if multiple <= short <= long <= WIDEST * short + 1e-9:
            found += [(long, short), (short, long)]
    return found


def kept(photo: Size, shape: Size) -> float:
    """Returns the share of a photo's area that its largest crop of this shape shows."""
    return math.exp(-abs(_log_aspect(photo) - _log_aspect(shape)))


def nearest(photo: Size, shapes: Sequence[Size]) -> int:
    """Returns the place of the shape that cuts least off a photo; of equal ones the first."""
    return max(range(len(shapes)), key=lambda i: (round(kept(photo, shapes[i]), 9), -i))


def weights(counts: Sequence[Mapping[Size, int]]) -> list[dict[Size, int]]:
    """Returns the weight of each shape for each subject, by its number of photos there.

    Whole numbers with the same sum for every subject: subjects take turns, whatever the number of
    their photos, and the photos of one subject are seen equally often.
    """
    totals = [sum(each.values()) for each in counts]
    whole = math.lcm(*totals)
    scaled = [
        {shape: n * whole // total for shape, n in each.items() if n}
        for each, total in zip(counts, totals, strict=True)
    ]
    common = math.gcd(*(n for each in scaled for n in each.values()))
    return [{shape: n // common for shape, n in each.items()} for each in scaled]


def order(shares: Sequence[int]) -> tuple[int, ...]:
    """Returns a round of turns, evenly spread: the k-th has `shares[k]`, in lowest terms."""
    common = math.gcd(*shares)
    turns = [((i + 0.5) * common / n, k) for k, n in enumerate(shares) for i in range(n // common)]
    return tuple(k for _, k in sorted(turns))


def parts(number: int, shares: Sequence[int]) -> list[int]:
    """Returns `number` in parts in proportion to `shares`, by the largest remainders.

    Every part is at least 1, so that the sum is larger where there are more parts than that.
    """
    exact = [number * share / sum(shares) for share in shares]
    found = [math.floor(each) for each in exact]
    rest = sorted(range(len(exact)), key=lambda k: (found[k] - exact[k], k))
    for k in rest[: number - sum(found)]:
        found[k] += 1
    while 0 in found:  # from the largest part, while it can spare one
        most = max(range(len(found)), key=lambda k: (found[k], -k))
        found[most] -= found[most] > 1
        found[found.index(0)] = 1
    return found


@dataclasses.dataclass(frozen=True)
class Steps:
    """The shape of each step: all rows of a step have one, and each photo is seen equally often.

    counts: of each shape, at least one in all. A round has as many steps of a shape as it counts,
    in an order drawn anew for each round.
    """

    counts: tuple[int, ...]
    seed: int
    name: str = "shapes"

    def at(self, step: int) -> tuple[int, int]:
        """Returns the shape of a step, its place in `counts`, and how many steps had it before."""
        cycle, place = divmod(step, sum(self.counts))
        drawn = self._order(cycle)
        shape = int(drawn[place])
        before = int(np.count_nonzero(drawn[:place] == shape))
        return shape, cycle * self.counts[shape] + before

    def _order(self, cycle: int) -> Any:
        from dreambooth_jax import rng  # brings jax, which the studio's audit does without

        whole = np.repeat(np.arange(len(self.counts)), self.counts)
        return rng.generator(self.seed, self.name, cycle).permutation(whole)


@dataclasses.dataclass(frozen=True)
class ShapedBatches:
    """Batches of several shapes: each step's rows have one, its photos and its class images.

    sources: of each shape that has photos; steps: which of them a step takes.
    """

    sources: "Sequence[SubjectBatches]"
    steps: Steps

    @property
    def prompts(self) -> np.ndarray:
        """The rows of all prompts there are, sorted."""
        return np.unique(np.concatenate([source.prompts for source in self.sources]))

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """The rows of one step (`SubjectBatches.batch`)."""
        shape, own = self.steps.at(step)
        return self.sources[shape].batch(own)
