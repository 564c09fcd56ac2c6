"""A request becomes one Nix expression; nothing in it is read as Nix that was given as data."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from nixops_operator.errors import InvalidSpec
from nixops_operator.facts.nix import EvaluationRequest, KeyFile, Module, Source
from nixops_operator.nix.expression import RESERVED_ARGUMENTS, expression, inline_files, nix_string

NIXPKGS = Source("/nix/store/a15nfi42zfs2g93aplfdada4ca25x6h3-source", "sha256-nixpkgs")
SOURCE = Source("/nix/store/cis058pb1jb7k89f7d41lqbwh6n3ji6d-source", "sha256-source")
INLINE = Source("/nix/store/66lcyzm77nq9j5ayd861lbj0shg3mqvv-source", "sha256-inline")
REQUEST = EvaluationRequest(
    name="webserver",
    deployment="example",
    uuid="11111111-2222-3333-4444-555555555555",
    system="x86_64-linux",
    is_ec2=True,
    nixpkgs=NIXPKGS,
    nixpkgs_folder="",
    source=SOURCE,
    modules=(Module("configuration.nix", path="configuration.nix"), Module("modules[1]", text="{ }")),
    state_version="25.11",
    trusted_public_key="nixops-1:key",
    tenant="team",
    keys=(KeyFile("token", "/run/keys/token", "web", "keys", "0640", is_first=True),),
)


def given(text: str) -> dict[str, object]:
    """The input of an expression, read back as Nix would."""
    literal = re.search(r'input = "(.*?[^\\])"; facts = ', text, re.DOTALL)
    assert literal is not None
    return json.loads(re.sub(r"\\(.)", r"\1", literal[1]))


def test_the_input_says_all_that_the_evaluation_depends_on() -> None:
    assert given(expression(REQUEST, INLINE, {})) == {
        "name": "webserver",
        "deployment": "example",
        "uuid": "11111111-2222-3333-4444-555555555555",
        "system": "x86_64-linux",
        "isEc2": True,
        "nixpkgs": {"path": NIXPKGS.store_path, "hash": "sha256-nixpkgs"},
        "nixpkgsFolder": "",
        "source": {"path": SOURCE.store_path, "hash": "sha256-source"},
        "inline": {"path": INLINE.store_path, "hash": "sha256-inline"},
        "modules": [{"path": "configuration.nix"}, {"file": "module-1.nix"}],
        "stateVersion": "25.11",
        "trustedPublicKey": "nixops-1:key",
        "arguments": {},
        "keys": {
            "token": {
                "path": "/run/keys/token",
                "user": "web",
                "group": "keys",
                "permissions": "0640",
                "isFirst": True,
            }
        },
    }


def test_equal_requests_give_equal_expressions() -> None:
    one = replace(REQUEST, arguments={"a": "1", "b": "2"})
    other = replace(REQUEST, arguments={"b": "2", "a": "1"})
    assert expression(one, INLINE, {}) == expression(other, INLINE, {})


def test_modules_given_as_text_are_files_named_by_their_place() -> None:
    assert inline_files(REQUEST.modules) == {"module-1.nix": b"{ }"}


@pytest.mark.parametrize(
    ("value", "literal"),
    [
        pytest.param("${builtins.abort}", '"\\${builtins.abort}"', id="no interpolation"),
        pytest.param("$${x}", '"\\$\\${x}"', id="nor by a doubled sign"),
        pytest.param('"; evil', '"\\"; evil"', id="no end of the string"),
        pytest.param('\\"', '"\\\\\\""', id="no escaped escape"),
        pytest.param("a\nb\r\tc", '"a\\nb\\r\\tc"', id="line ends are kept as they are"),
    ],
)
def test_a_string_stays_a_string(value: str, literal: str) -> None:
    assert nix_string(value) == literal


@pytest.mark.parametrize("name", sorted(RESERVED_ARGUMENTS))
def test_a_reserved_argument_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidSpec, match=rf"^spec\.configuration\.arguments: `{name}` is a name that NixOS"):
        expression(replace(REQUEST, arguments={name: "x"}), INLINE, {})


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("/etc/passwd", id="absolute"),
        pytest.param("../other/x.nix", id="leaves the source"),
        pytest.param("a/../../x.nix", id="leaves the source in the middle"),
        pytest.param(".", id="the source itself"),
    ],
)
def test_a_module_path_outside_of_the_source_is_refused(path: str) -> None:
    with pytest.raises(InvalidSpec) as refused:
        expression(replace(REQUEST, modules=(Module("x", path=path),)), None, {})
    assert refused.value.field == "spec.configuration.modules[0].path"


def test_a_module_path_without_a_source_is_refused() -> None:
    with pytest.raises(InvalidSpec, match=r"there is no spec\.configuration\.source"):
        expression(replace(REQUEST, source=None), INLINE, {})
