"""Finds a model's folder: in the package, on disk, in a bucket, or on the model hub."""

import errno
import functools
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

from dreambooth_jax import files, untrusted

# What a stage reads, and what its export hands on; no pickles, and no weights of other variants.
_STEMS = ("diffusion_pytorch_model", "model")
_REST = ("*.json", "README.md", "tokenizer*/*", "feature_extractor/*", "scheduler/*")
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
    parts: Sequence[str] = ("*",),
    patterns: Sequence[str] = (),
) -> Path:
    """The folder of a model: `"embedded"`, a folder, `gs://…`, or a hub's `owner/name[@revision]`.

    What is elsewhere is downloaded once, into `cache_dir` (default: where HF_HOME says, else the
    user's cache). The hub's token is that of HF_TOKEN or of `hf auth login`.

    Args:
      kind: "base" or "upscaler", or "encoder" for one network in the layout of transformers.
      variant: which weights are downloaded: "fp16" for `….fp16.safetensors`, None for plain ones.
      offline: use only the local cache, without network access, as HF_HUB_OFFLINE=1 does.
      weights: download weights, too.
      parts: components whose weights are downloaded.
      patterns: of the files that are downloaded, instead of those of a whole model.

    Raises:
      FileNotFoundError: no such folder, and the hub has or gives none of that name; says why.
      ValueError: an address that is not `gs://…`.
      OSError: there is no room for it.
    """
    if name == "embedded" and kind != "encoder":
        return Path(str(resources.files("dreambooth_jax") / "assets" / kind))
    wanted = wanted_files(variant, parts=parts) if weights else [*_REST]
    wanted = list(patterns or (_ENCODER if kind == "encoder" else wanted))
    if files.is_remote(name):
        fetch = functools.partial(_mirrored, name, cache_dir=cache_dir, offline=offline)
        return _with_plain(fetch, wanted, variant if weights and not patterns else None)
    folder = files.local(name)
    if folder.is_dir():
        return folder
    if kind != "encoder" and name.lower().endswith((".safetensors", ".ckpt", ".gguf")):
        raise FileNotFoundError(_single_file(folder))
    repository, _, revision = name.partition("@")
    if repository.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"no model folder {name!r}. Write "
            + ("" if kind == "encoder" else "'embedded', ")
            + f"a folder with {'config' if kind == 'encoder' else 'model_index'}.json, or a hub id "
            "'owner/name' or 'owner/name@revision', or gs://BUCKET/FOLDER."
        )
    fetch = functools.partial(
        _downloaded, repository, revision or None, cache_dir=cache_dir, offline=offline
    )
    return _with_plain(fetch, wanted, variant if weights and not patterns else None)


def cache_folder(cache_dir: str | None) -> Path:
    """The folder of what was downloaded or made from it: `cache_dir`, or as HF_HOME says."""
    from huggingface_hub import constants

    return files.local(cache_dir or constants.HF_HUB_CACHE)


def wanted_files(variant: str | None, *, parts: Sequence[str] = ("*",)) -> list[str]:
    """Patterns of the files to download; a star stands for any part of a path."""
    middle = f".{variant}" if variant else ""
    names = [f"{stem}{middle}{end}.safetensors" for stem in _STEMS for end in ("", "-*-of-*")]
    return [*_REST, *(f"{part}/{name}" for part in parts for name in names)]


def _single_file(file: Path) -> str:
    """Returns the message about a name that is that of one file, and of none that is read."""
    if file.suffix.lower() == ".safetensors":
        return f"no file {str(file)!r}. Write the path of the single file, or of a model folder."
    return (
        f"{str(file)!r} is a single file of another format than safetensors, which is not read: a "
        "pickle (.ckpt) can run code when opened. Expected FILE.safetensors, or a model folder in "
        "the diffusers layout. Convert it once, in Python with PyTorch's diffusers: "
        f"StableDiffusionPipeline.from_single_file({str(file)!r}).save_pretrained('FOLDER') "
        "(StableDiffusionXLPipeline for XL), and write FOLDER instead."
    )


def _with_plain(fetch: Callable[..., Path], patterns: list[str], variant: str | None) -> Path:
    """The folder that `fetch` fills; components without files of the variant get plain ones."""
    folder = fetch(patterns=patterns)
    if not variant:
        return folder
    networks = [part for part in sorted(folder.iterdir()) if (part / "config.json").is_file()]
    bare = [part.name for part in networks if not any(part.glob("*.safetensors"))]
    if not bare or len(bare) == len(networks):  # of no component: the reader says so
        return folder
    return fetch(patterns=[*patterns, *wanted_files(None, parts=bare)])


def _mirrored(address: str, *, patterns: list[str], cache_dir: str | None, offline: bool) -> Path:
    source, cache = files.at(address), cache_folder(cache_dir)
    # Files below it are replaced and removed: the address may not lead out of the cache.
    place = untrusted.below(cache / "gs", address.partition("://")[2].strip("/"), of=address)
    if not offline:
        files.mirror(source, place, patterns=patterns)
    elif not place.is_dir():
        raise FileNotFoundError(
            f"{address} is not in {cache}, and hub.offline=True forbids a download. "
            "Write --config.hub.offline=False."
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
