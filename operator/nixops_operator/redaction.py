"""Secrets in texts that others write: a module that throws a key, a library that quotes what it was given."""

from __future__ import annotations

import re

_SECRETS = re.compile(
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|\Z)"
    r"|PuTTY-User-Key-File-.*?(?:Private-MAC: \w+|\Z)"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{12,}"
    r"|(?i:secret[-_]?access[-_]?key|(?:session|security)[-_]?token)\W{1,4}[^\s\"',}]+"
    r"|(?i:bearer )[A-Za-z0-9._~+/=-]+"
    r"|:[A-Za-z0-9+/]{86}==",  # the secret half of a key of nix-store(1), `--generate-binary-cache-key`
    re.DOTALL,
)


def without_secrets(text: str) -> str:
    """`text` without private keys, access key ids, tokens, and what stands behind the names of AWS secrets. Looks at
    all of it: for texts of bounded length."""
    return _SECRETS.sub("[redacted]", text)
