r"""The settings of a run that was started before, from its folder: draws from it, exports it.

For instance, with prompts of your own, or another checkpoint and number format:

    python -m dreambooth_jax.main --config=configs/of_run.py:runs/duck --mode=sample \
        --config.sample.prompts="('a {subject} on the moon',)"
    python -m dreambooth_jax.main --config=configs/of_run.py:runs/duck --mode=export \
        --config.restore.base=400 --config.export.dtype=bfloat16
"""

from dreambooth_jax import config


def get_config(arg: str = "") -> config.ConfigDict:
    """What `config.json` in the folder `arg` says; that folder is the workdir, too."""
    return config.of_run(arg)
