"""Where a clip lies, as one text: its address.

========================================================  ==========================================================
``/pool/dog.wav``                                         a file
``s3://bucket/dog.wav``                                   an object, in a store that fsspec knows by its protocol
``/pool/a.tar#bytes=1536-49663&name=dog.wav``             a member of an uncompressed tar: both ends count, as in HTTP
``/pool/a.parquet#row=17&column=audio&name=dog.wav``      a cell of a Parquet file: bytes, or a struct with ``bytes``
========================================================  ==========================================================

Containers may be objects too. A name is for people and for lists that name files; nothing is found by it.
"""

import os
import re

URL = re.compile(r"([a-z][a-z0-9+.-]+::)*[a-z][a-z0-9+.-]+://", re.IGNORECASE)  # chained ones too: they are no files
MEMBER = re.compile(
    r"(?P<container>.+\.tar)#bytes=(?P<first>\d+)-(?P<last>\d+)(&name=(?P<name>.*))?", re.DOTALL | re.IGNORECASE
)
CELL = re.compile(
    r"(?P<container>.+\.parquet)#row=(?P<row>\d+)&column=(?P<column>[^&]+)(&name=(?P<name>.*))?",
    re.DOTALL | re.IGNORECASE,
)


def member_address(container: str, offset: int, size: int, name: str) -> str:
    """Return the address of a member of a tar.

    Parameters
    ----------
    container : str
        Address of the tar.
    offset : int
        Where the member begins in the tar, in bytes.
    size : int
        Bytes of the member.
    name : str
        For people.
    """
    return f"{container}#bytes={offset}-{offset + size - 1}&name={name}"


def cell_address(container: str, row: int, column: str, name: str = "") -> str:
    """Return the address of a cell of a Parquet file.

    Parameters
    ----------
    container : str
        Address of the file.
    row : int
        Counts from 0 through the whole file.
    column : str
    name : str
        For people; left out where it is empty.
    """
    return f"{container}#row={row}&column={column}" + (f"&name={name}" if name else "")


def is_url(address: str) -> bool:
    """Return whether an address begins with a protocol, or with a chain of them."""
    return URL.match(address) is not None


def container_of(address: str) -> str:
    """Return the file or the object that an address is in: the address itself, but for members and cells."""
    match = MEMBER.fullmatch(address) or CELL.fullmatch(address)
    return match["container"] if match else address


def absolute(base: str, address: str) -> str:
    """Return an address that does not depend on the folder we are in; `base` is what relative ones are relative to."""
    container = container_of(address)
    rest = address[len(container) :]
    if is_url(container):
        return address
    if is_url(base):
        return f"{base.rstrip('/')}/{container}{rest}"
    return os.path.abspath(os.path.join(base, container)) + rest


def readable(address: str) -> str:
    """Return how people say where a clip is: a member as ``a.tar/dog.wav``, all others as they are."""
    match = MEMBER.fullmatch(address)
    return f"{match['container']}/{match['name']}" if match and match["name"] else address


def is_utf8(text: str) -> bool:
    """Return whether a text can be written down; a file's name that is not UTF-8 comes as one that cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def reading_order(address: str) -> tuple[str, int]:
    """Return a key that sorts addresses as they lie: a container is then read from its start to its end."""
    if match := MEMBER.fullmatch(address):
        return match["container"], int(match["first"])
    if match := CELL.fullmatch(address):
        return match["container"], int(match["row"])
    return address, 0
