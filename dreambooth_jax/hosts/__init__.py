"""Several processes of one run: they agree, wait for each other, and end together.

Nothing here compiles or computes, but for `meet`: it uses the key-value store of jax's coordination
service, which process 0 runs.
"""

from dreambooth_jax.hosts.agreement import Disagreement, agree, meet
from dreambooth_jax.hosts.watch import Watch

__all__ = ["Disagreement", "Watch", "agree", "meet"]
