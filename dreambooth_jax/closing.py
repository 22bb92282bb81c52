"""An end of `with` blocks that does not hide the error that ended them."""

import abc
from types import TracebackType
from typing import Self

from absl import logging

from dreambooth_jax import untrusted


class Closing(abc.ABC):
    """A context manager that closes itself.

    A failure to close is raised; where the block ended with an error, it is logged, so that the
    error is told.
    """

    @abc.abstractmethod
    def close(self) -> None:
        """Ends its work; nothing is called after."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except Exception as failed:
            if error is None:
                raise
            logging.error("Closing failed as well: %s", untrusted.in_short(failed))
