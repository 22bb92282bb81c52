"""Sends an export to a model hub, in one commit; checks name and token long before."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dreambooth_jax import untrusted

_KEY = "--config.export.push_to_hub"
# Seconds without a sign of the hub: to connect, to answer a question, to take a part of the files.
_CONNECTED, _ASKED, _SENT = 30.0, 60.0, 600.0


class UploadError(ValueError):
    """An upload that cannot be; the message tells the remedy."""


def check(repository: str, *, private: bool) -> None:
    """Asks the hub who is writing, and whether the repository may be written and shown as asked.

    Raises:
      UploadError: the name is none, there is no token, the hub cannot be reached, does not know it
        or lets it only read, the owner is another one, or the repository is public and `private`
        is wanted.
    """
    with _told(repository):
        _check(repository, private=private)


def _check(repository: str, *, private: bool) -> None:
    import huggingface_hub
    from huggingface_hub import constants, errors, utils

    owner = repository.partition("/")[0]
    utils.validate_repo_id(repository)
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
    with _in_time(_ASKED):
        who = api.whoami()
        _check_owner(who, repository, owner)
        try:
            found = api.model_info(repository)
        except errors.RepositoryNotFoundError:
            return
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
    with _told(repository), _in_time(_SENT):
        import huggingface_hub

        add = huggingface_hub.CommitOperationAdd
        api = huggingface_hub.HfApi()
        adds = [
            add(name, content if isinstance(content, bytes) else str(content))
            for name, content in sorted(files.items())
        ]
        made = api.create_repo(repository, private=private, exist_ok=True)
        api.create_commit(repository, adds, commit_message="DreamBooth by dreambooth_jax")
    return str(made)


@contextlib.contextmanager
def _in_time(seconds: float) -> Iterator[None]:
    """Within it an answer of the hub may take so long; its library would wait for ever."""
    from huggingface_hub import utils

    session = utils.get_session()
    before = session.timeout
    session.timeout = (_CONNECTED, seconds, seconds, _CONNECTED)
    try:
        yield
    finally:
        session.timeout = before


@contextlib.contextmanager
def _told(repository: str) -> Iterator[None]:
    """Turns whatever the hub's libraries raise within it into an UploadError.

    Without a connection that is nearly anything: errors of the HTTP client, which are no OSError,
    of the name service, a proxy, a certificate, of JSON that a login page is not.
    """
    try:
        yield
    except UploadError:
        raise
    except Exception as error:  # see above
        kind = type(error).__name__
        text = untrusted.in_short(error)
        reason = text if isinstance(error, OSError) or text == kind else f"{kind}: {text}"
        raise UploadError(f"{_KEY}={repository}: {reason.rstrip('.')}.") from error


def _check_owner(who: Mapping[str, Any], repository: str, owner: str) -> None:
    """Raises UploadError where the token's user cannot write there."""
    if not isinstance(who, Mapping):
        raise UploadError(f"{_KEY}={repository}: what answers is no model hub.")
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
