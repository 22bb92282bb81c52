"""The main program: flags, logging, one call of a mode.

    python -m dreambooth_jax.main --config=configs/imagen_like.py --workdir=runs/bird

`--help` prints `usage.text`.
"""

import logging as std_logging
import os
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from dreambooth_jax import chips, compile_cache, files, hosts, log_file, turns, untrusted, usage
from dreambooth_jax import config as configs
from dreambooth_jax.checkpoint import CheckpointError
from dreambooth_jax.experiment.modes.table import MODES, help_text
from dreambooth_jax.experiment.parts import outline
from dreambooth_jax.experiment.parts.workdir import check_writable
from dreambooth_jax.train import Interrupted, NonFiniteError

FLAGS = flags.FLAGS
# What is told by its message alone; a traceback is for mistakes of this program.
FORESEEN = (ValueError, OSError, ImportError, MemoryError, CheckpointError, NonFiniteError)
CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Name or file of a configuration, as listed above.", lock_config=True
)
WORKDIR = flags.DEFINE_string(
    "workdir",
    "",
    "Folder of the run, or gs://BUCKET/FOLDER; '' is runs/<name of the config>-<class noun>.",
)
_OWN = ("compile.cache_dir", "hub.cache_dir")  # every host may have its own
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    list(MODES),
    help_text(),
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


def options() -> dict[str, str]:
    """The flags of this program that a user sets, by name, with their sentences."""
    shown = (WORKDIR, COORDINATOR, NUM_PROCESSES, PROCESS_ID, HOST_TIMEOUT)
    return {each.name: FLAGS[each.name].help for each in shown}


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line as `config.parse_flags` does; prints the help text for `--help`."""
    log_file.escape_others()
    if {"--help", "-h", "-help", "--helpshort"} & {*argv[1:]}:
        print(usage.text(options(), installed=False), end="")
        sys.exit(0)
    return configs.parse_flags(argv)


def default_workdir(config: configs.ConfigDict) -> Path:
    """`runs/<config>-<subject>`, so that another subject does not land in the same folder.

    The subject is called by the name of its folder; the embedded one by its class noun. With
    `configs/of_run.py:FOLDER` it is that folder, and a benchmark has no subject of its own.
    """
    path, _, arg = config_flags.get_config_filename(FLAGS["config"]).partition(":")
    name = Path(path).stem
    if name == "of_run":
        return files.at(arg)
    if MODE.value in ("benchmark", "fleet"):
        return Path("runs") / name
    images = config.subject.images
    subject = config.subject.class_noun if images == "embedded" else Path(images).name
    return Path("runs") / f"{name}-{subject}".replace(" ", "_")


def quiet_others() -> None:
    """Keeps the log to what this program says: libraries are heard from warnings on."""
    level = max(FLAGS.verbosity, logging.INFO)
    if PROCESS_ID.value and level == logging.INFO:  # one process tells what all of them do
        level = logging.WARNING
    logging.set_verbosity(level)
    logging.use_absl_handler()
    logging.get_absl_handler().addFilter(log_file.is_ours)
    if level <= logging.INFO:  # of what is sought by --verbosity=1, file and line are of use
        logging.get_absl_handler().setFormatter(log_file.Short())
        logging.get_absl_handler().addFilter(log_file.is_news)
    std_logging.getLogger("asyncio").setLevel(std_logging.CRITICAL)
    threading.excepthook = _in_background


def _in_background(about: threading.ExceptHookArgs) -> None:
    """One line for what ends a library's thread; the error is told where it is waited for."""
    name = about.thread.name if about.thread else "?"
    error = about.exc_value or about.exc_type()
    logging.debug("thread %s: %s", name, error, exc_info=error)
    logging.warning("thread %s: %s", name, untrusted.in_short(error))


def choose_platform() -> None:
    """Asks for the TPU where one is plugged in and JAX_PLATFORMS does not say otherwise.

    Then a TPU that another program holds, or that lacks its driver, is an error; by default jax
    would train on the CPU.
    """
    if not os.environ.get("JAX_PLATFORMS") and chips.tpus_here():
        jax.config.update("jax_platforms", "tpu,cpu")


def without_device(error: Exception) -> str:
    """The message for a device that does not start, "" for other errors."""
    reason = str(error).strip().partition("\n")[0]
    if not isinstance(error, RuntimeError) or "nable to initialize backend" not in reason:
        return ""
    return (
        f"The accelerator does not start: {reason} Another program may hold it, also one that was "
        "stopped badly: `sudo lsof -w /dev/accel* /dev/vfio/*` (TPU) or `nvidia-smi` (GPU) shows "
        "which; end it. Or its package is not installed: pip install 'dreambooth_jax[tpu]' or "
        "'dreambooth_jax[cuda]'. JAX_PLATFORMS=cpu runs on the CPU."
    )


def joined(folder: Path) -> hosts.Watch | None:
    """Joins the other processes of the run, where there are some; all of them wait here."""
    if not COORDINATOR.value:
        return None
    # jax's own is the second resort: it ends a process from C++, without a word of what to do, and
    # counts the time in which all of them were stopped together, as on suspended machines.
    how: dict[str, Any] = {"heartbeat_timeout_seconds": 10 * HOST_TIMEOUT.value}
    if COORDINATOR.value == "auto":
        jax.distributed.initialize(**how)
    else:
        jax.distributed.initialize(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, **how)
    return hosts.Watch(str(folder), timeout=HOST_TIMEOUT.value)


def told(error: BaseException) -> str:
    """The message of a foreseen error: never empty, and with the file of one of the system's."""
    return str(error).strip() or untrusted.in_short(error)


def leave(code: int) -> NoReturn:
    """Ends the program at once, also where a library's thread would be waited for.

    Orbax's threads wait minutes for a folder that a failed save has not made.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    threads = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    if any(not thread.daemon for thread in threads):
        os._exit(code)
    sys.exit(code)


def main(argv: list[str]) -> None:
    """Runs the experiment; ends with a message and an exit code where something is wrong."""
    del argv
    quiet_others()
    config, mode = CONFIG.value, MODES[MODE.value]
    try:
        folder = files.at(WORKDIR.value) if WORKDIR.value else default_workdir(config)
    except ValueError as error:
        logging.error("--workdir=%s", error)
        sys.exit(1)
    choose_platform()
    watch = joined(folder)
    compile_cache.use(config.compile.cache_dir)
    try:
        settings = {k: v for k, v in configs.flatten(config).items() if k not in _OWN}
        hosts.agree(
            "the settings",
            {"--mode": MODE.value, "--workdir": str(folder), "--config": settings},
            remedy="Start every process with the same arguments.",
        )
        if mode.writes and turns.is_first():
            check_writable(folder)
        with outline.of_mode(MODE.value, folder):
            made = mode.function(config, folder)
    except Interrupted as interrupted:
        logging.warning("%s", interrupted)
        if watch:
            watch.end()
        sys.exit(interrupted.exit_code)
    except FORESEEN as error:
        if watch:
            watch.failed(error, expected=FLAGS.verbosity <= logging.INFO)
        if FLAGS.verbosity > logging.INFO:
            raise
        logging.error("%s", told(error))
        leave(1)
    except Exception as error:
        message = without_device(error)
        if watch:
            watch.failed(error, expected=bool(message))
        if not message:
            raise
        logging.error("%s", message)
        leave(1)
    if watch:
        watch.end()
    logging.info("Done. The %s: %s", mode.leaves, made)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
