"""Several processes of one run: they agree on what must be the same, and end together.

Nothing here compiles or computes: it uses the key-value store of jax's coordination service, which
process 0 runs.
"""

from dreambooth_jax.hosts.agreement import Disagreement, agree
from dreambooth_jax.hosts.watch import Watch

__all__ = ["Disagreement", "Watch", "agree"]
