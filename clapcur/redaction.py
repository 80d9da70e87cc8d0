"""Hide secrets in text that is stored or shown: passwords in URLs, tokens, and values of secret variables."""

import os
import re

HIDDEN = "***"
MIN_LENGTH = 6  # characters of a variable's value; a shorter one would hide parts of ordinary words

SECRET = r"password|passwd|passphrase|token|secret|api[-_]?key|access[-_]?key(?:[-_]id)?|auth(?:[-_]string)?|signature"
# PWD is the current folder, and no secret
SECRET_VARIABLE = re.compile(rf"(?:^|_|pg)(?:{SECRET}|login|key|credentials?)(?:_|$)", re.IGNORECASE)
PATTERNS = (
    # scheme://user:password@host, where the password may hold any character: the last @ ends it
    (re.compile(r"(\b[a-z][a-z0-9+.\-]*://[^\s:/@?#]*:)[^\s\"']*(@)", re.IGNORECASE), rf"\g<1>{HIDDEN}\g<2>"),
    # a token in place of the user: https://TOKEN@host
    (re.compile(r"(\b[a-z][a-z0-9+.\-]*://)[^\s:/@?#]{16,}(@)", re.IGNORECASE), rf"\g<1>{HIDDEN}\g<2>"),
    # password=..., --token ..., "secret": "...", X-Amz-Signature=...
    (
        re.compile(rf"((?<![a-z])(?:[a-z0-9_\-]*[_\-])?(?:{SECRET})[\"']?\s*[=:]\s*[\"']?)"
                   r"(?!\*\*\*)[^\s\"'&,;)}\]]+", re.IGNORECASE),
        rf"\g<1>{HIDDEN}",
    ),
    (re.compile(r"(--(?:[a-z0-9\-]+-)?(?:" + SECRET + r")\s+)(?!\*\*\*)\S+", re.IGNORECASE), rf"\g<1>{HIDDEN}"),
    (re.compile(r"\b((?:Basic|Bearer)\s+)[A-Za-z0-9+/=_.\-]{8,}"), rf"\g<1>{HIDDEN}"),
    (re.compile(r"\b(?:hf_|gh[pousr]_|sk-|AKIA|ASIA)[A-Za-z0-9_\-]{12,}"), HIDDEN),
)  # fmt: skip


def is_secret(variable: str) -> bool:
    """Return whether the name of an environment variable says that its value is secret."""
    return SECRET_VARIABLE.search(variable) is not None


def redacted(text: str) -> str:
    """Return `text` with every password, token and value of a secret environment variable replaced by ``***``."""
    values = {value for name, value in os.environ.items() if is_secret(name) and len(value) >= MIN_LENGTH}
    values |= {part for value in values for part in value.split(":")[1:] if len(part) >= MIN_LENGTH}
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    for pattern, replacement in PATTERNS:
        text = pattern.sub(replacement, text)
    return text
