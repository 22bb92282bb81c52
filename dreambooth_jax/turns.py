"""The share of one process in the work of all: the first one writes, the rest goes in turn."""

import jax


def is_first() -> bool:
    """Returns True in one of the processes: it writes, and tells, what is the same in all."""
    return jax.process_index() == 0


def is_mine(k: int) -> bool:
    """Returns True in the one process that does the k-th of several pieces of work."""
    return k % jax.process_count() == jax.process_index()
