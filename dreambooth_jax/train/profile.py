"""A trace of some steps for `jax.profiler`'s viewers (TensorBoard, XProf, Perfetto)."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from absl import logging


@dataclasses.dataclass
class Profile:
    """Traces steps `at … at + steps - 1` into `folder`; what compiles before them is not in it."""

    at: int | None
    steps: int
    folder: Path
    tracing: bool = False

    def before(self, step: int, state: Any) -> None:
        """Begins or ends the trace where it is time to; `state` is that of the step to come."""
        if self.tracing and self.at is not None and step >= self.at + self.steps:
            self.end(state)
        if step == self.at:
            jax.block_until_ready(state)  # none of the steps before belong to it
            jax.profiler.start_trace(self.folder)
            self.tracing = True

    def end(self, state: Any) -> None:
        """Writes the trace, if there is one under way; waits for its steps."""
        if self.tracing:
            self.tracing = False
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
            logging.info("The trace of %d steps from %s on: %s", self.steps, self.at, self.folder)
