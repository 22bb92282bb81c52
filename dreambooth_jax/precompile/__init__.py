"""Programs compiled for devices that are not here, and what they would take there.

The compilers of TPUs (extra `precompile`) and of NVIDIA GPUs (`precompile-gpu`) run on any
computer: memory, bytes moved and operations of a program are known before a device is rented.
"""

from dreambooth_jax.precompile.forecasts import Forecast, as_table, forecast, read
from dreambooth_jax.precompile.topologies import topology

__all__ = ["Forecast", "as_table", "forecast", "read", "topology"]
