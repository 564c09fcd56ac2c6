"""What is said of an annotation that looks like ours and asks for nothing."""

from __future__ import annotations

import pytest

from nixops_operator.annotations import unknown_annotations
from nixops_operator.facts.kube import Kind

MACHINE, DEPLOYMENT = Kind.MACHINE, Kind.DEPLOYMENT


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize(
    "key",
    [
        "nixops.dev/paused",
        "nixops.dev/reconcile-requested-at",
        "nixops.dev/allow-deletion",
        "reconcile.fluxcd.io/requestedAt",
        "example.org/nixops.dev",
        "kubectl.kubernetes.io/last-applied-configuration",
    ],
)
def test_nothing_of_what_counts_or_is_somebody_elses(kind: Kind, key: str) -> None:
    assert unknown_annotations(kind, [key]) == ""


def test_nothing_of_what_counts_on_a_machine() -> None:
    assert unknown_annotations(MACHINE, ["nixops.dev/reboot-requested-at", "nixops.dev/applied-labels"]) == ""


@pytest.mark.parametrize(
    ("kind", "key", "hint"),
    [
        (MACHINE, "nixops.dev/pause", "; did you mean nixops.dev/paused?"),
        (DEPLOYMENT, "nixops.dev/Paused", "; did you mean nixops.dev/paused?"),
        (MACHINE, "nixops.dev/reboot-request-at", "; did you mean nixops.dev/reboot-requested-at?"),
        (MACHINE, "nixops.dev/owner", ""),
        (DEPLOYMENT, "nixops.dev/reboot-requested-at", ", it counts on a NixMachine"),
    ],
)
def test_a_slip_is_named_with_what_was_meant(kind: Kind, key: str, hint: str) -> None:
    said = {MACHINE: "NixMachine", DEPLOYMENT: "NixDeployment"}[kind]
    assert unknown_annotations(kind, [key]) == f"the annotation {key} means nothing on a {said}{hint}"


def test_each_of_several_is_named() -> None:
    assert (
        unknown_annotations(MACHINE, ["nixops.dev/b", "nixops.dev/paused", "nixops.dev/a"]).count("means nothing") == 2
    )
