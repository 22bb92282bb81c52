"""Height and width of a stage's pictures: the model's own, and which others it can make."""

import dataclasses
from collections.abc import Sequence

from dreambooth_jax.data.images import LARGEST

Size = tuple[int, int]  # height and width in pixels
Resolution = int | Size  # a side of a square, or height and width


@dataclasses.dataclass(frozen=True)
class Frame:
    """Sizes in pixels that a model can make.

    Args:
      own: height and width of what it makes where nothing else is asked for.
      multiple: every side is a multiple of so many pixels.
      most: pixels along a side at most; None: there is no bound.
    """

    own: Size
    multiple: int = 1
    most: int | None = None

    def at(self, asked: Resolution | None) -> Size:
        """Returns height and width of `asked`, or the model's own.

        Raises:
          SizeError: the model cannot make that size; the message has the nearest one.
        """
        size = self.own if asked is None else sides(asked)
        most = min(LARGEST, self.most or LARGEST) // self.multiple * self.multiple
        if asked is not None and any(side < self.multiple or side % self.multiple for side in size):
            least = "a multiple" if isinstance(asked, int) else "two multiples"
            near = [max(round(side / self.multiple), 1) * self.multiple for side in size]
            near = [min(side, most) for side in near]
            raise SizeError(asked, f"expected {least} of {self.multiple}", near)
        if max(size) > most:
            reason = f"expected at most {most} pixels along a side"
            if most < LARGEST // self.multiple * self.multiple:
                reason = f"this model knows positions up to {most} pixels along a side"
            raise SizeError(asked, reason, [min(side, most) for side in size])
        return size


class SizeError(ValueError):
    """A size that a model cannot make: `reason`, and the nearest height and width that it can."""

    def __init__(self, asked: Resolution | None, reason: str, near: Sequence[int]) -> None:
        self.reason, self.near = reason, (near[0], near[1])
        written = f"{near[0]}" if isinstance(asked, int) else f"{near[0]},{near[1]}"
        found = "the model's own" if asked is None else asked
        super().__init__(f"resolution = {found}: {reason}. Write --config.resolution={written}.")


def sides(asked: Resolution) -> Size:
    """Height and width of a resolution."""
    return (asked, asked) if isinstance(asked, int) else (asked[0], asked[1])
