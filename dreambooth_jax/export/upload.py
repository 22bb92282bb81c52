"""Sends an export to a model hub, in one commit; checks name and token long before."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_KEY = "--config.export.push_to_hub"


class UploadError(ValueError):
    """An upload that cannot be; the message tells the remedy."""


def check(repository: str, *, private: bool) -> None:
    """Asks the hub who is writing, and whether the repository may be written and shown as asked.

    Raises:
      UploadError: the name is none, there is no token, the hub does not know it or lets it only
        read, the owner is another one, or the repository is public and `private` is wanted.
    """
    import huggingface_hub
    from huggingface_hub import constants, errors, utils

    owner = repository.partition("/")[0]
    try:
        utils.validate_repo_id(repository)
    except errors.HFValidationError as error:
        raise UploadError(f"{_KEY}={repository}: {error}") from error
    if repository.count("/") != 1:
        raise UploadError(f"{_KEY}={repository}: expected 'owner/name'.")
    if constants.is_offline_mode():
        raise UploadError(f"{_KEY}={repository}: HF_HUB_OFFLINE is set. Unset it.")
    if not huggingface_hub.get_token():
        raise UploadError(
            f"{_KEY}={repository}: no token of the model hub. Log in with `hf auth login`, or set "
            "HF_TOKEN to a token that may write."
        )
    api = huggingface_hub.HfApi()
    try:
        who = api.whoami()
    except (errors.HfHubHTTPError, OSError) as error:
        raise UploadError(f"{_KEY}={repository}: {_in_short(error)}") from error
    _check_owner(who, repository, owner)
    try:
        found = api.model_info(repository)
    except errors.RepositoryNotFoundError:
        return
    except (errors.HfHubHTTPError, OSError) as error:
        raise UploadError(f"{_KEY}={repository}: {_in_short(error)}") from error
    if private and not found.private:
        raise UploadError(
            f"{_KEY}={repository}: this repository is public. Write another name, or "
            "--config.export.private=False if the model may be seen by all."
        )


def push(files: Mapping[str, Path | bytes], repository: str, *, private: bool) -> str:
    """Makes the repository, where there is none, and commits files by path; returns its address.

    Raises:
      UploadError: the hub refused it, or cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub import errors

    api = huggingface_hub.HfApi()
    add = huggingface_hub.CommitOperationAdd
    adds = [
        add(name, content if isinstance(content, bytes) else str(content))
        for name, content in sorted(files.items())
    ]
    try:
        made = api.create_repo(repository, private=private, exist_ok=True)
        api.create_commit(repository, adds, commit_message="DreamBooth by dreambooth_jax")
    except (errors.HfHubHTTPError, OSError, ValueError) as error:
        raise UploadError(f"{_KEY}={repository}: {_in_short(error)}") from error
    return str(made)


def _check_owner(who: Mapping[str, Any], repository: str, owner: str) -> None:
    """Raises UploadError where the token's user cannot write there."""
    role = who.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise UploadError(
            f"{_KEY}={repository}: the token of {who.get('name')} may only read. Make one that may "
            "write, and set HF_TOKEN or run `hf auth login` again."
        )
    owners = [who.get("name"), *(each.get("name") for each in who.get("orgs", []))]
    if owner not in owners:
        raise UploadError(
            f"{_KEY}={repository}: the token belongs to {', '.join(map(str, owners))}. Write one "
            "of these as the owner."
        )


def _in_short(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
