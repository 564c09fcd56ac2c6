"""Annotations under our prefix that mean nothing where they stand: what they ask for never happens. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from nixops_operator import names
from nixops_operator.api.group import GROUP
from nixops_operator.facts.kube import Kind

_COMMON = {names.PAUSED_ANNOTATION, names.RECONCILE_ANNOTATION, names.ALLOW_DELETION_ANNOTATION}
_MEANT = {
    Kind.DEPLOYMENT: _COMMON,
    Kind.MACHINE: _COMMON | {names.REBOOT_ANNOTATION, names.APPLIED_LABELS_ANNOTATION},
}


def unknown_annotations(kind: Kind, annotations: Iterable[str]) -> str:
    """What to say of those keys of an object's annotations that only seem to ask for something; empty if all is
    well."""
    meant = _MEANT[kind]
    slips = sorted(key for key in annotations if key.startswith(f"{GROUP}/") and key not in meant)
    return "; ".join(f"the annotation {key} means nothing on a {kind.object_kind}{_hint(kind, key)}" for key in slips)


def _hint(kind: Kind, key: str) -> str:
    if others := [other.object_kind for other, meant in _MEANT.items() if key in meant]:
        return f", it counts on a {others[0]}"
    near = difflib.get_close_matches(key, sorted(_MEANT[kind]), 1, 0.75)
    return f"; did you mean {near[0]}?" if near else ""
