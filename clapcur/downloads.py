"""Detect what was saved instead of a download: a Git LFS pointer that was never fetched, or an HTML error page."""

MARKUP = (b"<html", b"<!doctype", b"<head", b"<body", b"<?xml")
LFS_POINTER = b"version https://git-lfs"
HEAD_BYTES = 1024  # read from the start of a file; enough to recognise both


def not_downloaded(head: bytes) -> str | None:
    """Return what a file is, judged by its first bytes, and what to do; None if it may be the intended file."""
    if head.startswith(LFS_POINTER):
        return "a Git LFS pointer, not the file itself: run `git lfs pull` in the clone"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"<") and any(sign in text for sign in MARKUP):
        return "a web page: open it in a browser; it may be a login page or a download error"
    return None
