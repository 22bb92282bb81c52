"""The command line.

    python -m dreambooth_jax.main --config=configs/imagen_like.py --workdir=runs/bird

Kept short on purpose: everything below it can be imported and tested without flags.
"""

import logging as std_logging
import os
import sys
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from dreambooth_jax import config as configs
from dreambooth_jax import experiment, files, hosts
from dreambooth_jax.checkpoint import CheckpointError
from dreambooth_jax.experiment import benchmark
from dreambooth_jax.train import Interrupted, NonFiniteError

FLAGS = flags.FLAGS
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The settings: a file of configs/.", lock_config=True
)
WORKDIR = flags.DEFINE_string(
    "workdir",
    "",
    "Folder of the run, or gs://BUCKET/FOLDER; '' is runs/<name of the config>-<class noun>.",
)
MODES = {
    "train": experiment.run,
    "sample": experiment.sample,
    "export": experiment.export,
    "identify": experiment.identify,
    "evaluate": experiment.evaluate,
    "precompile": experiment.forecast,
    "benchmark": benchmark.run,
}
_MADE = {
    "train": "report",
    "sample": "pictures",
    "export": "fine-tuned model",
    "identify": "identifiers",
    "evaluate": "scores",
    "precompile": "forecast",
    "benchmark": "scores",
}
_OWN = ("compile.cache_dir", "hub.cache_dir")  # every host may have its own
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    list(MODES),
    "The whole run; draw sample.prompts, or export, with a run's checkpoints; find identifiers; "
    "score a run's pictures, or a folder's; compile for a TPU that is not here; learn and score "
    "every subject of a benchmark.",
)
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    "",
    "host:port of process 0, for a run on several hosts; 'auto' asks the TPU pod or Slurm.",
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", 1, "Processes of the run, all hosts together.", lower_bound=1
)
PROCESS_ID = flags.DEFINE_integer("process_id", 0, "Which of them this is, from 0.", lower_bound=0)
HOST_TIMEOUT = flags.DEFINE_integer(
    "host_timeout",
    45,
    "Seconds without a sign of life after which another process counts as gone, and all end.",
    lower_bound=1,
)
flags.mark_flag_as_required("config")


def default_workdir(config: configs.ConfigDict) -> Path:
    """`runs/<config>-<subject>`, so that another subject does not land in the same folder.

    The subject is called by the name of its folder; the embedded one by its class noun. With
    `configs/of_run.py:FOLDER` it is that folder, and a benchmark has no subject of its own.
    """
    path, _, arg = config_flags.get_config_filename(FLAGS["config"]).partition(":")
    name = Path(path).stem
    if name == "of_run":
        return files.at(arg)
    if MODE.value == "benchmark":
        return Path("runs") / name
    images = config.subject.images
    subject = config.subject.class_noun if images == "embedded" else Path(images).name
    return Path("runs") / f"{name}-{subject}".replace(" ", "_")


def use_compile_cache(setting: str) -> None:
    """Keeps compiled programs between runs, in the folder `setting`.

    "" is where JAX_COMPILATION_CACHE_DIR says, else the user's cache folder; "off" keeps none.
    """
    if setting == "off":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    before = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]  # made at run time
    if before and not setting:
        return
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", setting or str(cache / "dreambooth_jax" / "xla"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def quiet_others() -> None:
    """Keeps the log to what this program says: libraries are heard from warnings on."""

    def ours(record: Any) -> bool:
        from_us = "dreambooth_jax" in Path(record.pathname).parts
        return from_us or record.levelno >= std_logging.WARNING

    level = max(FLAGS.verbosity, logging.INFO)
    if PROCESS_ID.value and level == logging.INFO:  # one process tells what all of them do
        level = logging.WARNING
    logging.set_verbosity(level)
    logging.use_absl_handler()
    logging.get_absl_handler().addFilter(ours)


def joined(folder: Path) -> hosts.Watch | None:
    """Joins the other processes of the run, where there are some; all of them wait here."""
    if not COORDINATOR.value:
        return None
    # jax's own is the second resort: it ends a process from C++, without a word of what to do.
    how: dict[str, Any] = {"heartbeat_timeout_seconds": 2 * HOST_TIMEOUT.value}
    if COORDINATOR.value == "auto":
        jax.distributed.initialize(**how)
    else:
        jax.distributed.initialize(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, **how)
    return hosts.Watch(str(folder), timeout=HOST_TIMEOUT.value)


def main(argv: list[str]) -> None:
    """Runs the experiment; ends with a message and an exit code where something is wrong."""
    del argv
    quiet_others()
    config = CONFIG.value
    try:
        folder = files.at(WORKDIR.value) if WORKDIR.value else default_workdir(config)
    except ValueError as error:
        logging.error("--workdir=%s", error)
        sys.exit(1)
    watch = joined(folder)
    use_compile_cache(config.compile.cache_dir)
    try:
        settings = {k: v for k, v in configs.flatten(config).items() if k not in _OWN}
        hosts.agree(
            "the settings",
            {"--mode": MODE.value, "--workdir": str(folder), "--config": settings},
            remedy="Start every process with the same arguments.",
        )
        made = MODES[MODE.value](config, folder)
    except Interrupted as interrupted:
        logging.warning("%s", interrupted)
        if watch:
            watch.end()
        sys.exit(interrupted.exit_code)
    except (ValueError, OSError, CheckpointError, NonFiniteError) as error:
        if watch:
            watch.failed(error, expected=FLAGS.verbosity <= logging.INFO)
        if FLAGS.verbosity > logging.INFO:
            raise
        logging.error("%s", error)
        sys.exit(1)
    except Exception as error:
        if watch:
            watch.failed(error, expected=False)
        raise
    if watch:
        watch.end()
    logging.info("Done. The %s: %s", _MADE[MODE.value], made)


if __name__ == "__main__":
    app.run(main, flags_parser=configs.parse_flags)
