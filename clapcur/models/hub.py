"""Names on the Hugging Face Hub: whether one can be had is known before anything waits for the network.

The Hub's own client tries an unreachable host again and again, for a minute and more.
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
TIMEOUT_S = 5.0  # of one attempt to reach the Hub; ours


def check_source(source: str, what: str) -> None:
    """Return at once where a name on the Hub is in the local cache, or the Hub can be asked for it.

    Parameters
    ----------
    source : str
        What is no file and no folder here.
    what : str
        For the message, such as "text model".

    Raises
    ------
    CheckpointError
        It is no name on the Hub, or is not in the local cache and the Hub is out of reach.
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
    """Return whether a host accepts a connection; behind a proxy, only the client can find out."""
    parts = urlsplit(endpoint)
    if parts.scheme in getproxies():
        return True
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), TIMEOUT_S).close()
    except OSError:
        return False
    return True
