"""Names on the Hugging Face Hub: check quickly whether a model is available.

The Hub's own client retries an unreachable host for more than a minute.
"""

import os
import re
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

from clapcur.errors import CheckpointError

NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
ENDPOINT = "https://huggingface.co"
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
    endpoint = os.environ.get("HF_ENDPOINT", ENDPOINT)
    if any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in OFFLINE):
        why = "HF_HUB_OFFLINE prevents downloading it"
    elif not _answers(endpoint):
        why = f"{endpoint} cannot be reached"
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
