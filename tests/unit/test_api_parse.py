"""Specs as the operator itself judges them: the same verdicts as the API server's, for what was merged or stored before
a rule was tightened."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from nixops_operator.api.machine_of_deployment import machines_of
from nixops_operator.api.machine_spec import DeletionPolicy, DriftPolicy, ReplacePolicy
from nixops_operator.api.parse import parse_deployment, parse_machine
from nixops_operator.errors import InvalidSpec

DATA = Path(__file__).parents[1] / "data"
# Only the API server sees the object's name or two list entries of one key; labels are no part of a machine's spec.
SERVER_ONLY = {"name-of-machine-too-long", "name-of-deployment-too-long", "group-twice", "key-twice"}
STALLED = sorted((DATA / "stalled").glob("*.yaml"))
INVALID = [path for path in sorted((DATA / "invalid").glob("*.yaml")) if path.stem not in SERVER_ONLY]


def parsed(body: dict[str, Any]) -> object:
    return parse_machine(body) if body["kind"] == "NixMachine" else machines_of(body)


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_refused_as_by_the_api_server(path: Path) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parsed(yaml.safe_load(path.read_text()))

    assert caught.value.field.startswith("spec")


@pytest.mark.parametrize("path", STALLED, ids=lambda path: path.stem)
def test_refused_after_merging_with_words_for_people(path: Path) -> None:
    """What only the whole shows: the API server takes it, and the object is Stalled."""
    text = path.read_text()

    with pytest.raises(InvalidSpec) as caught:
        parsed(yaml.safe_load(text))

    assert text.splitlines()[0].removeprefix("# stalled: ") in caught.value.message


@pytest.mark.parametrize("path", sorted((DATA / "valid").glob("*.yaml")), ids=lambda path: path.stem)
def test_accepted_as_by_the_api_server(path: Path) -> None:
    parsed(yaml.safe_load(path.read_text()))


def test_defaults_of_a_machine() -> None:
    spec = parse_machine(yaml.safe_load((DATA / "valid/machine-that-exists.yaml").read_text()))

    assert (spec.suspend, spec.deletion_policy, spec.drift_policy) == (
        False,
        DeletionPolicy.DELETE,
        DriftPolicy.ENFORCE,
    )
    assert (spec.ssh.user, spec.ssh.address, spec.client_key.key) == ("root", None, "ssh-privatekey")
    assert (spec.activation.timeout, spec.activation.confirm_timeout) == (timedelta(minutes=30), timedelta(seconds=60))
    assert (spec.activation.drift_policy, spec.disruption.replace) == (DriftPolicy.ENFORCE, ReplacePolicy.NEVER)


def test_the_field_is_named_as_it_is_written() -> None:
    body = yaml.safe_load((DATA / "valid/machine-on-ec2-with-all-fields.yaml").read_text())
    body["spec"]["activation"]["confirmTimeout"] = "soon"

    with pytest.raises(InvalidSpec) as caught:
        parse_machine(body)

    assert (
        caught.value.message == "spec.activation.confirmTimeout: 'soon' is no duration; write it as 90s, 30m or 1h30m"
    )


def test_a_spec_stays_under_64_kib() -> None:
    modules = [{"inline": "# " + "x" * 30000}] * 3
    body = yaml.safe_load((DATA / "valid/machine-that-exists.yaml").read_text())
    body["spec"]["configuration"]["modules"] = modules

    with pytest.raises(InvalidSpec, match="spec: is larger than 64 KiB; move modules into a ConfigMap"):
        parse_machine(body)


def test_letters_that_are_not_ascii_count_as_kubectl_writes_them() -> None:
    body = yaml.safe_load((DATA / "valid/machine-that-exists.yaml").read_text())
    body["spec"]["configuration"]["modules"] = [{"inline": "# " + "ж" * 30000}]

    parse_machine(body)


def test_a_message_never_repeats_a_secret() -> None:
    body = yaml.safe_load((DATA / "invalid/private-key-in-argument.yaml").read_text())

    with pytest.raises(InvalidSpec) as caught:
        parse_machine(body)

    assert "BEGIN" not in caught.value.message
    assert "put it into a Secret" in caught.value.message


def test_a_machine_may_be_left_for_its_target_to_come() -> None:
    body = yaml.safe_load((DATA / "stalled/deployment-without-targets.yaml").read_text())

    assert [machine.name for machine in parse_deployment(body).machines] == ["web"]
    with pytest.raises(InvalidSpec, match=r"spec\.machines\[0\]\.target: Field required"):
        machines_of(body)
