"""Keys of the data of Secrets and ConfigMaps, in words for people. Pure."""

from __future__ import annotations

from collections.abc import Iterable

KEYS_SHOWN = 8
"""How many keys of a Secret or ConfigMap a message lists."""


def listed_keys(present: Iterable[str]) -> str:
    """Keys of a Secret's or ConfigMap's data, for people: their names are no secrets."""
    known = sorted(present)
    more = f" and {len(known) - KEYS_SHOWN} more" if len(known) > KEYS_SHOWN else ""
    return (", ".join(known[:KEYS_SHOWN]) or "none") + more


def not_there(what: str, key: str, present: Iterable[str] | None) -> str:
    """Why `key` cannot be taken from `what`, as `Secret web with the client key`, and what to do. `present`: the keys
    that it has; None if it does not exist. Most often the key is there and is called otherwise, as the file was."""
    if present is None:
        return f"{what} does not exist; create it"
    return f"{what} has no key {key}; it has {listed_keys(present)}: name the right one, or add it"
