"""`--mode=push`: sends the export of a run to a model hub."""

from pathlib import Path

from dreambooth_jax import config as configs
from dreambooth_jax.config import ConfigDict
from dreambooth_jax.experiment.parts.workdir import Workdir
from dreambooth_jax.experiment.results import pushing


def push(config: ConfigDict, folder: Path) -> Path:
    """Sends the run's export to `export.push_to_hub`; returns the folder that was sent.

    Raises:
      ConfigError, UploadError: what was found, expected, and what to do.
    """
    plan = configs.resolve(config)
    if not plan.export.push_to_hub:
        raise configs.ConfigError(
            "export.push_to_hub is empty. Write --config.export.push_to_hub=OWNER/NAME."
        )
    workdir = Workdir.of_run(folder, plan)
    pushing.checked_push(plan, workdir)
    return workdir.export
