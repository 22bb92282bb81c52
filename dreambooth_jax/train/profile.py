"""A trace of some steps for `jax.profiler`'s viewers (TensorBoard, XProf, Perfetto)."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import jax
from absl import logging

from dreambooth_jax import files


@dataclasses.dataclass
class Profile:
    """Traces steps `at … at + steps - 1` into `folder`; what compiles before them is not in it."""

    at: int | None
    steps: int
    folder: Path
    tracing: bool = False
    _made: "tempfile.TemporaryDirectory[str] | None" = None  # until it is sent to a bucket

    def before(self, step: int, state: Any) -> None:
        """Begins or ends the trace where it is time to; `state` is that of the step to come."""
        if self.tracing and self.at is not None and step >= self.at + self.steps:
            self.end(state)
        if step == self.at:
            jax.block_until_ready(state)  # none of the steps before belong to it
            if files.is_remote(self.folder):
                self._made = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self._made.name if self._made else self.folder)
            self.tracing = True

    def end(self, state: Any) -> None:
        """Writes the trace, if there is one under way; waits for its steps."""
        if self.tracing:
            self.tracing = False
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            if self._made:
                files.send(Path(self._made.name), self.folder)
                self._made.cleanup()
                self._made = None
            logging.info("The trace of %d steps from %s on: %s", self.steps, self.at, self.folder)
