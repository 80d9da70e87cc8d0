"""Addresses: the location of a clip as one string.

========================================================  ==========================================================
``/pool/dog.wav``                                         a file
``s3://bucket/dog.wav``                                   an object, in a store that fsspec knows by its protocol
``/pool/a.tar#bytes=1536-49663&name=dog.wav``             a member of an uncompressed tar: both ends count, as in HTTP
``/pool/a.parquet#row=17&column=audio&name=dog.wav``      a cell of a Parquet file: bytes, or a struct with ``bytes``
========================================================  ==========================================================

Containers may also be objects. The name is for people and for lists of files; it is not used to find the clip.
"""

import os
import re

URL = re.compile(r"([a-z][a-z0-9+.-]+::)*[a-z][a-z0-9+.-]+://", re.IGNORECASE)  # chained ones too: they are not files
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
        Start of the member in the tar, in bytes.
    size : int
        Size of the member, in bytes.
    name : str
        Name for people.
    """
    return f"{container}#bytes={offset}-{offset + size - 1}&name={name}"


def cell_address(container: str, row: int, column: str, name: str = "") -> str:
    """Return the address of a cell of a Parquet file.

    Parameters
    ----------
    container : str
        Address of the file.
    row : int
        Row number in the whole file, from 0.
    column : str
    name : str
        Name for people; omitted if empty.
    """
    return f"{container}#row={row}&column={column}" + (f"&name={name}" if name else "")


def is_url(address: str) -> bool:
    """Return whether an address begins with a protocol, or with a chain of them."""
    return URL.match(address) is not None


def container_of(address: str) -> str:
    """Return the container of a member or a cell; for any other address, the address itself."""
    match = MEMBER.fullmatch(address) or CELL.fullmatch(address)
    return match["container"] if match else address


def absolute(base: str, address: str) -> str:
    """Return an address that does not depend on the working directory; relative addresses are relative to `base`."""
    container = container_of(address)
    rest = address[len(container) :]
    if is_url(container):
        return address
    if is_url(base):
        return f"{base.rstrip('/')}/{container}{rest}"
    return os.path.abspath(os.path.join(base, container)) + rest


def readable(address: str) -> str:
    """Return an address for people: a member as ``a.tar/dog.wav``, any other address unchanged."""
    match = MEMBER.fullmatch(address)
    return f"{match['container']}/{match['name']}" if match and match["name"] else address


def is_utf8(text: str) -> bool:
    """Return whether a string can be encoded as UTF-8; a file name that is not UTF-8 becomes one that cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def reading_order(address: str) -> tuple[str, int]:
    """Return a sort key that puts addresses in storage order, so that a container is read from start to end."""
    if match := MEMBER.fullmatch(address):
        return match["container"], int(match["first"])
    if match := CELL.fullmatch(address):
        return match["container"], int(match["row"])
    return address, 0
