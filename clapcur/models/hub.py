"""Models on the Hugging Face Hub: check quickly whether one is available, download and upload ours.

The Hub's own client retries an unreachable host for more than a minute. Its errors have several lines; here each is one
line that says what to do. `HF_ENDPOINT`, `HF_TOKEN` and `HF_HOME` have their usual meanings.
"""

import json
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from clapcur.errors import CheckpointError

NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
PREFIX = "hf:"  # of a name that is on the Hub, whatever is in the working directory
ENDPOINT = "https://huggingface.co"
OURS = ("config.json", "model.safetensors", "text/*")  # files of a saved model; nothing else is downloaded
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
TIMEOUT_S = 5.0  # for one attempt to reach the Hub; ours


def check_source(source: str, what: str) -> None:
    """Check that a name on the Hub is in the local cache, or that the Hub can be reached.

    Parameters
    ----------
    source : str
        A name that is neither a local file nor a folder.
    what : str
        Description for the error message, such as "text model".

    Raises
    ------
    CheckpointError
        It is not a valid name on the Hub, or it is not in the local cache and the Hub cannot be reached.
    """
    if not NAME.fullmatch(source):
        raise CheckpointError(f"{what} {source} not found: it is not a file, a folder or a valid name on the Hub")
    if _is_cached(source):
        return
    if any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in OFFLINE):
        why = "HF_HUB_OFFLINE prevents downloading it"
    elif not _answers(_endpoint()):
        why = f"{_endpoint()} cannot be reached"
    else:
        return
    raise CheckpointError(
        f"{what} {source} not found: it is not a file, a folder or a name on the Hub in the local cache, and {why}"
    )


def _is_cached(source: str) -> bool:
    from transformers.utils import cached_file

    try:
        return cached_file(source, "config.json", local_files_only=True) is not None
    except (OSError, ValueError):
        return False


def _answers(endpoint: str) -> bool:
    """Return whether a host accepts a connection; behind a proxy return True, since only the client can find out."""
    parts = urlsplit(endpoint)
    if parts.scheme in getproxies():
        return True
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), TIMEOUT_S).close()
    except OSError:
        return False
    return True


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT") or ENDPOINT


def download(name: str) -> Path | None:
    """Download a model that clapcur saved, to the Hub's cache; the weights of others are left alone.

    Returns
    -------
    Path or None
        The folder, which `clapcur.models.clap.load_model` reads; None if another project saved the model.

    Raises
    ------
    CheckpointError
        There is no such model, it is not accessible, or the Hub cannot be reached and the model is not cached.
    """
    from huggingface_hub import hf_hub_download, snapshot_download

    check_source(name, "model")
    options: dict[str, Any] = {"endpoint": _endpoint(), "local_files_only": not _answers(_endpoint())}
    with _explained(name):
        config = Path(hf_hub_download(name, "config.json", **options))
        if not _is_ours(config):
            return None
        return Path(snapshot_download(name, allow_patterns=list(OURS), **options))


def _is_ours(config: Path) -> bool:
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(values, dict) and str(values.get("format", "")).startswith("clapcur.")


def upload(folder: Path, name: str, *, private: bool = False, update: bool = False, message: str = "") -> str:
    """Upload a folder as a model repository.

    Parameters
    ----------
    folder : Path
    name : str
        ``org/name``, or a name in the namespace of the token's user.
    private : bool
        Create a repository that only its owners can read.
    update : bool
        Add a commit to the repository if it exists; otherwise an existing one is an error.
    message : str
        Message of the commit.

    Returns
    -------
    str
        URL of the repository.

    Raises
    ------
    CheckpointError
        The name is invalid or taken, there is no token or it does not allow this, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi

    check_upload(name)
    api = HfApi(endpoint=_endpoint())
    with _explained(name):
        made = api.create_repo(name, private=private or None, exist_ok=update)
    with _explained(name, f"; the repository {made.repo_id} exists now, so run again with --update"):
        api.upload_folder(
            repo_id=made.repo_id, folder_path=folder, commit_message=message or None,
            delete_patterns=list(OURS) if update else None,
        )  # fmt: skip
    return str(made)


def check_upload(name: str) -> None:
    """Raise CheckpointError if a name is invalid, there is no token, or the Hub cannot be reached."""
    from huggingface_hub import get_token

    if not NAME.fullmatch(name):
        raise CheckpointError(
            f"{name!r} is not a valid name on the Hub, which is ORG/NAME of letters, digits, -, _ and ."
        )
    if get_token() is None:
        raise CheckpointError(f"there is no token for {_endpoint()}: {LOG_IN}")
    if not _answers(_endpoint()):
        raise CheckpointError(f"{_endpoint()} cannot be reached")


@contextmanager
def _explained(name: str, then: str = "") -> Iterator[None]:
    """Raise errors of the Hub's client as CheckpointError, in one line."""
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except (HTTPError, OSError, ValueError) as error:
        raise CheckpointError(f"{_reason(name, error)}{then}") from error


def _reason(name: str, error: Exception) -> str:
    from huggingface_hub import errors

    said = " ".join(str(getattr(error, "server_message", None) or error).split())
    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if isinstance(error, errors.GatedRepoError):
        return f"{name} is gated: accept its terms at {_endpoint()}/{name}, and {LOG_IN}"
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return f"{name} on the Hub has no config.json, so it is not a model that can be loaded"
    if isinstance(error, errors.RepositoryNotFoundError) or status == 404:
        return f"there is no model {name} at {_endpoint()}, or it is private; if it is private, {LOG_IN}"
    if status == 401:
        return f"{_endpoint()} did not accept the token: {LOG_IN}"
    if status == 403:
        return f"the token does not allow this for {name} ({said}); use one with write access to its namespace"
    if status == 409:
        return f"{name} already exists at {_endpoint()}; choose another name, or add a version with --update"
    if status is not None:
        return f"{_endpoint()} answered with status {status} for {name}: {said:.300}"
    return f"cannot reach {name} at {_endpoint()}: {said:.300}"
