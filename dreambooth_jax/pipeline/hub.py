"""Where a model's folder is: in the package, on disk, in a bucket, or on the model hub."""

import errno
from importlib import resources
from pathlib import Path

from dreambooth_jax import files

# What a stage reads, and what its export hands on; no pickles, and no weights of other variants.
_STEMS = ("diffusion_pytorch_model", "model")
_REST = ("*.json", "tokenizer*/*", "feature_extractor/*", "scheduler/*")
# What an encoder reads, which has no folders in its folder.
_ENCODER = ("*.json", "merges.txt", "model.safetensors", "model-*-of-*.safetensors")


def locate(
    name: str,
    *,
    kind: str,
    variant: str | None = None,
    cache_dir: str | None = None,
    offline: bool = False,
    weights: bool = True,
) -> Path:
    """The folder of a model: `"embedded"`, a folder, `gs://…`, or a hub's `owner/name[@revision]`.

    What is elsewhere is downloaded once, into `cache_dir` (default: where HF_HOME says, else the
    user's cache). The hub's token is that of HF_TOKEN or of `hf auth login`.

    Args:
      kind: "base" or "upscaler", or "encoder" for one network in the layout of transformers.
      variant: which weights are downloaded: "fp16" for `….fp16.safetensors`, None for plain ones.
      offline: take what the cache holds and ask nobody; HF_HUB_OFFLINE=1 does the same.
      weights: download weights, too.

    Raises:
      FileNotFoundError: no such folder, and the hub has or gives none of that name; says why.
      ValueError: an address that is not `gs://…`.
      OSError: there is no room for it.
    """
    if name == "embedded" and kind != "encoder":
        return Path(str(resources.files("dreambooth_jax") / "assets" / kind))
    patterns = wanted_files(variant) if weights else [*_REST]
    patterns = list(_ENCODER) if kind == "encoder" else patterns
    if files.is_remote(name):
        return _mirrored(name, patterns=patterns, cache_dir=cache_dir, offline=offline)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    repository, _, revision = name.partition("@")
    if repository.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"no model folder {name!r}. Write "
            + ("" if kind == "encoder" else "'embedded', ")
            + f"a folder with {'config' if kind == 'encoder' else 'model_index'}.json, or a hub id "
            "'owner/name' or 'owner/name@revision', or gs://BUCKET/FOLDER."
        )
    return _downloaded(
        repository, revision or None, patterns=patterns, cache_dir=cache_dir, offline=offline
    )


def wanted_files(variant: str | None) -> list[str]:
    """Patterns of the files to download; a star stands for any part of a path."""
    middle = f".{variant}" if variant else ""
    weights = [f"*/{stem}{middle}{part}.safetensors" for stem in _STEMS for part in ("", "-*-of-*")]
    return [*_REST, *weights]


def _mirrored(address: str, *, patterns: list[str], cache_dir: str | None, offline: bool) -> Path:
    from huggingface_hub import constants

    source = files.at(address)
    cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
    place = cache / "gs" / address.partition("://")[2].strip("/")
    if not offline:
        files.mirror(source, place, patterns=patterns)
    elif not place.is_dir():
        raise FileNotFoundError(
            f"{address} is not in {cache}, and nobody is to be asked for it. Write "
            "--config.hub.offline=False."
        )
    return place


def _downloaded(
    repository: str,
    revision: str | None,
    *,
    patterns: list[str],
    cache_dir: str | None,
    offline: bool,
) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    what = f"{repository}@{revision}" if revision else repository
    try:
        folder = huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=offline,
            allow_patterns=patterns,
        )
    except errors.GatedRepoError as error:
        raise FileNotFoundError(
            f"{what} is gated: accept its licence on its page of the model hub, then log in with "
            "`hf auth login` or set HF_TOKEN. Run the same command again."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{repository} has no revision {revision!r}. Write a branch, a tag or a commit of it "
            f"after the @, or {repository!r} alone."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"no folder {what!r}, and the model hub gave none either: it has no public repository "
            "of that name. Check the spelling; if it is private, log in with `hf auth login` or "
            "set HF_TOKEN."
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise FileNotFoundError(
            f"no folder {what!r}, and the model hub gave none either: it cannot be reached (or was "
            "not to be asked), and the cache does not hold the model. Go online, or give a folder "
            f"that `hf download {repository} --local-dir FOLDER` filled elsewhere."
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise FileNotFoundError(_in_short(what, error)) from error
    except errors.HFValidationError as error:
        raise FileNotFoundError(_in_short(what, error)) from error
    return Path(folder)


def _in_short(what: str, error: Exception) -> str:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return (
        f"no folder {what!r}, and the model hub gave none either: {reason} "
        "For a gated model, accept its licence on its page and log in with `hf auth login`."
    )
