"""The folder in which compiled programs are kept between runs."""

import os
from pathlib import Path

import jax
from absl import logging


def use(setting: str) -> None:
    """Keeps compiled programs between runs, in the folder `setting`.

    "" is where JAX_COMPILATION_CACHE_DIR says, else the user's cache folder; "off" keeps none.
    """
    if setting == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    before = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]  # made at run time
    if before and not setting:
        return
    if not setting:
        try:
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        except RuntimeError:  # a container's user without a name and HOME
            logging.warning(
                "No home folder: compiled programs are not kept between runs. Write "
                "--config.compile.cache_dir=FOLDER to keep them."
            )
            jax.config.update("jax_enable_compilation_cache", False)
            return
        setting = str(cache / "dreambooth_jax" / "xla")
    jax.config.update("jax_compilation_cache_dir", setting)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
