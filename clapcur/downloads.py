"""What is where a download should be: the pointer of a large file that was never fetched, or a page that says why."""

MARKUP = (b"<html", b"<!doctype", b"<head", b"<body", b"<?xml")
LFS_POINTER = b"version https://git-lfs"
HEAD_BYTES = 1024  # of a file, which is enough to see it


def not_downloaded(head: bytes) -> str | None:
    """Return what a file is by its first bytes, and what to do; None where it may be what was meant."""
    if head.startswith(LFS_POINTER):
        return "a Git LFS pointer, not the file itself: run `git lfs pull` in the clone"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"<") and any(sign in text for sign in MARKUP):
        return "a web page: open it in a browser; it may be a login page or a download error"
    return None
