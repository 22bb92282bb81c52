"""Height and width of a stage's pictures: the model's own, and which others it can make."""

import dataclasses

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
          ValueError: the model cannot make that size; the message has the nearest one.
        """
        if asked is None:
            return self.own
        size = (asked, asked) if isinstance(asked, int) else (asked[0], asked[1])
        if any(side < self.multiple or side % self.multiple for side in size):
            least = "a multiple" if isinstance(asked, int) else "two multiples"
            near = [max(round(side / self.multiple), 1) * self.multiple for side in size]
            raise ValueError(
                f"resolution = {asked}: expected {least} of {self.multiple}. {_write(asked, near)}"
            )
        if self.most is not None and max(size) > self.most:
            near = [min(side, self.most) for side in size]
            raise ValueError(
                f"resolution = {asked}: this model knows positions up to {self.most} pixels along "
                f"a side. {_write(asked, near)}"
            )
        return size


def _write(asked: Resolution, near: list[int]) -> str:
    if isinstance(asked, int):
        return f"Write --config.resolution={near[0]}."
    return f"Write --config.resolution={near[0]},{near[1]}."
