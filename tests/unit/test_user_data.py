"""What NixOS' EC2 images make of an instance's user data: its host key, and nothing else."""

from __future__ import annotations

import subprocess

import pytest
from pydantic import ValidationError

from nixops_operator.api.machine_spec import Ec2Target
from nixops_operator.machine import host_keys
from nixops_operator.machine.attributes import declare, launch_request
from nixops_operator.machine.declared import Resolved
from nixops_operator.ssh_keys import generate_ed25519

MOST = 16 * 1024
"""Bytes: EC2 User Guide, "Run commands when you launch an EC2 instance with user data input"."""


def sed(script: str, text: str) -> str:
    return subprocess.run(["sed", script], input=text, capture_output=True, text=True, check=True).stdout.rstrip("\n")


def private_key_of(text: str) -> str:
    """nixpkgs, nixos/modules/virtualisation/ec2-data.nix; so does the next."""
    return sed(r"s/|/\n/g; s/SSH_HOST_ED25519_KEY://; t; d", text)


def public_key_of(text: str) -> str:
    return sed("s/SSH_HOST_ED25519_KEY_PUB://; t; d", text)


def is_a_configuration(text: str) -> bool:
    """nixpkgs, nixos/modules/virtualisation/amazon-init.nix: it would be switched to, at each boot."""
    return text.startswith("#!") or sed(r"/^\(#\|SSH_HOST_.*\)/d", text).strip() != ""


def user_data(extra: str | None) -> tuple[str, str, str]:
    """The user data of a launch, and the host key that is to come out of it: private, public."""
    key = generate_ed25519()
    ec2 = Ec2Target.model_validate({"instanceType": "t3.small", "userDataExtra": extra})
    declared = declare(ec2, Resolved(image_id="ami-1", instance_type="t3.small", subnet_id="subnet-1"))
    text = launch_request(declared, host_keys.user_data(key.text, key.public)).user_data
    return text, key.text.rstrip(), key.public


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param(None, id="nothing"),
        pytest.param("# role: web\n#zone b", id="two lines"),
        pytest.param("### https://nixos.org/channels/nixos-25.11 nixos\n", id="what is a channel in a configuration"),
        pytest.param("#!/bin/sh\n# never run\n", id="what is a script at the beginning"),
        pytest.param("#" * 15 * 1024, id="as much as there may be"),
    ],
)
def test_the_image_finds_its_host_key_and_nothing_to_switch_to(extra: str | None) -> None:
    text, private, public = user_data(extra)

    assert (private_key_of(text), public_key_of(text)) == (private, public)
    assert not is_a_configuration(text)
    assert text.endswith(extra or "|\n")
    assert len(text.encode()) <= MOST


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param("# a|b", id="a bar, which is a line end in the key"),
        pytest.param("# SSH_HOST_ED25519_KEY:x", id="a host key"),
        pytest.param("# a\n{ }", id="a configuration in the second line"),
        pytest.param("#!/bin/sh\nreboot", id="a script"),
        pytest.param("# é", id="characters of several bytes"),
        pytest.param("#" * (15 * 1024 + 1), id="too much"),
    ],
)
def test_what_would_break_the_host_key_or_be_switched_to_is_refused(extra: str) -> None:
    with pytest.raises(ValidationError):
        user_data(extra)
