"""Configurations that read each other, and what is known of their machines, as NixOps' `nodes` and `resources`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contract.nix_bench import MODEL, nixpkgs_folder, request
from nixops_operator.adapters.nix.sandboxed_nix import SandboxedNix
from nixops_operator.errors import EvaluationFailed, UnknownFact
from nixops_operator.facts.nix import Evaluation, EvaluationRequest, Facts, Module, Peer, Source

DATABASE = '{ config, ... }: { networking.hostName = "db-of-shop"; networking.domain = "example.org"; }'
KNOWN: dict[str, Any] = {
    "nodes": ["db", "webserver"],
    "nodes.db.config.networking.privateIPv4": "10.0.0.5",
    "nodes.db.config.networking.publicIPv4": None,
    "nodes.webserver.config.networking.publicIPv4": "198.51.100.7",
    "resources.ec2KeyPairs": {"main": {"region": "us-west-2"}},
    "resources.ec2SecurityGroups": {"http": {"region": "us-west-2", "description": "Web"}},
    "resources.ec2SecurityGroups.http.groupId": "sg-1",
}


@pytest.fixture(params=["", "OF_2020"], ids=["of today", "of 2020"])
def folder(request: pytest.FixtureRequest) -> Path:
    return nixpkgs_folder(request.param)


@pytest.fixture
async def tree(nix: SandboxedNix, folder: Path) -> Source:
    return await nix.add_path(folder)


def network(
    tree: Source, text: str, database: str = DATABASE, known: Mapping[str, Any] = KNOWN, **fields: Any
) -> EvaluationRequest:
    """`webserver`, and what it may read of `db`."""
    other = replace(request(tree, database), name="db")
    facts = Facts({path: json.dumps(value) for path, value in known.items()}, {"db": Peer(other, "evaluate:db")})
    return replace(request(tree, text), facts=facts, **fields)


def named(expression: str, arguments: str = "nodes, resources") -> str:
    """A module whose system has this value in its name, where no dot may be."""
    value = f'lib.replaceStrings [ "." ] [ "-" ] ({expression})'
    return f"{{ config, lib, {arguments}, ... }}: {{ networking.hostName = {value}; }}"


def name_of(evaluation: Evaluation) -> str:
    return evaluation.toplevel.partition("-nixos-system-")[2].rpartition("-")[0]


@pytest.mark.parametrize(
    ("expression", "name", "read"),
    [
        pytest.param("nodes.db.config.networking.hostName", "db-of-shop", {"nodes", "nodes.db"}, id="an option"),
        pytest.param(
            "resources.machines.db.networking.domain", "example.org", {"nodes", "nodes.db"}, id="by NixOps' other name"
        ),
        pytest.param(
            "nodes.db.config.networking.privateIPv4",
            "10.0.0.5",
            {"nodes", "nodes.db", "nodes.db.config.networking.privateIPv4"},
            id="another machine's address",
        ),
        pytest.param(
            'if nodes.db.config.networking.publicIPv4 == null then "none" else "some"',
            "none",
            {"nodes", "nodes.db", "nodes.db.config.networking.publicIPv4"},
            id="one that it does not have",
        ),
        pytest.param(
            "config.networking.publicIPv4",
            "198.51.100.7",
            {"nodes.webserver.config.networking.publicIPv4"},
            id="its own address",
        ),
        pytest.param('lib.concatStringsSep "-" (lib.attrNames nodes)', "db-webserver", {"nodes"}, id="which there are"),
        pytest.param("nodes.webserver.config.networking.domain", "example.com", {"nodes"}, id="itself"),
        pytest.param(
            "resources.ec2SecurityGroups.http.groupId",
            "sg-1",
            {"resources.ec2SecurityGroups", "resources.ec2SecurityGroups.http.groupId"},
            id="a group's id",
        ),
        pytest.param("resources.ec2KeyPairs.main.region", "us-west-2", {"resources.ec2KeyPairs"}, id="a key pair"),
        pytest.param(
            "resources.ec2SecurityGroups.http._type", "ec2-security-group", {"resources.ec2SecurityGroups"}, id="a kind"
        ),
    ],
)
async def test_what_is_known_can_be_read_and_is_told(
    nix: SandboxedNix, tree: Source, expression: str, name: str, read: set[str]
) -> None:
    module = named(expression).removesuffix("}") + 'networking.domain = lib.mkDefault "example.com"; }'
    wanted = network(tree, module)
    evaluation = await nix.evaluate(wanted)
    assert name_of(evaluation) == name.replace(".", "-")
    assert evaluation.told == wanted.facts.told(read)


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(MODEL, id="the model example"),
        pytest.param("{ nodes, resources, ... }: { }", id="one that only could read"),
        pytest.param(
            "{ resources, ... }: { deployment.ec2.keyPair = resources.ec2KeyPairs.main; "
            "deployment.ec2.securityGroups = [ resources.ec2SecurityGroups.http.name ]; }",
            id="one that says where it is deployed",
        ),
    ],
)
async def test_what_reads_nothing_depends_on_nothing(nix: SandboxedNix, tree: Source, module: str) -> None:
    evaluation = await nix.evaluate(network(tree, module))
    assert evaluation.told == {}
    assert (await nix.evaluate(network(tree, module, "{ syntax error", {}))).toplevel == evaluation.toplevel


@pytest.mark.parametrize(
    ("expression", "lacking"),
    [
        pytest.param(
            "nodes.db.config.networking.privateIPv4", "nodes.db.config.networking.privateIPv4", id="an address"
        ),
        pytest.param("toString (lib.attrNames nodes)", "nodes", id="which machines there are"),
        pytest.param("nodes.cache.config.networking.hostName", "nodes.cache", id="another's configuration"),
        pytest.param(
            "resources.ec2SecurityGroups.http.groupId", "resources.ec2SecurityGroups.http.groupId", id="a group's id"
        ),
    ],
)
async def test_what_is_not_known_yet_is_no_failure(
    nix: SandboxedNix, tree: Source, expression: str, lacking: str
) -> None:
    known = {path: value for path, value in KNOWN.items() if path != lacking}
    if lacking == "nodes.cache":
        known["nodes"] = ["cache", "db", "webserver"]
    with pytest.raises(UnknownFact) as unknown:
        await nix.evaluate(network(tree, named(expression), known=known))
    assert unknown.value.path == lacking
    assert unknown.value.told[lacking] is None
    if lacking not in ("nodes", "resources.ec2SecurityGroups.http.groupId"):
        assert unknown.value.told["nodes"] == json.dumps(known["nodes"])


async def test_a_configuration_may_do_without_what_is_not_known(nix: SandboxedNix, tree: Source) -> None:
    path = "nodes.db.config.networking.privateIPv4"
    known = {one: value for one, value in KNOWN.items() if one != path}
    tried = f'let tried = builtins.tryEval {path}; in if tried.success then tried.value else "later"'
    evaluation = await nix.evaluate(network(tree, named(tried), known=known))
    assert name_of(evaluation) == "later"
    assert evaluation.told[path] is None


async def test_an_address_that_a_module_says_needs_nobody_else(nix: SandboxedNix, tree: Source) -> None:
    database = '{ networking.privateIPv4 = "192.0.2.1"; }'
    evaluation = await nix.evaluate(
        network(tree, named("nodes.db.config.networking.privateIPv4"), database, {"nodes": ["db"]})
    )
    assert name_of(evaluation) == "192-0-2-1"


async def test_the_address_of_a_given_host_is_asked_for(nix: SandboxedNix, tree: Source) -> None:
    known = {**KNOWN, "nodes.db.config.networking.privateIPv4": False}
    with pytest.raises(EvaluationFailed, match=r"networking\.privateIPv4 of db is not known, as it is a given host"):
        await nix.evaluate(network(tree, named("nodes.db.config.networking.privateIPv4"), known=known))


async def test_machines_may_read_each_other(nix: SandboxedNix, tree: Source) -> None:
    """Option by option, as long as no option needs itself."""
    database = '{ nodes, ... }: { networking.domain = "of-${nodes.webserver.config.networking.domain}"; }'
    module = '{ nodes, ... }: { networking.hostName = nodes.db.config.networking.domain; networking.domain = "org"; }'
    assert name_of(await nix.evaluate(network(tree, module, database))) == "of-org"


async def test_options_that_need_each_other_are_told(nix: SandboxedNix, tree: Source) -> None:
    database = "{ nodes, ... }: {\n  networking.domain = nodes.webserver.config.networking.domain;\n}"
    module = "{ nodes, ... }: {\n  networking.domain = nodes.db.config.networking.domain;\n}"
    module = module.removesuffix("}") + "  networking.hostName = nodes.webserver.config.networking.domain;\n}"
    with pytest.raises(EvaluationFailed) as failed:
        await nix.evaluate(network(tree, module, database))
    told = r"modules\[0\] of db:.* infinite recursion encountered while evaluating the option `networking\.domain'"
    assert re.match(told, f"{failed.value.message}:")
    assert "nodes.db" in failed.value.told


async def test_what_is_wrong_elsewhere_in_another_machine_concerns_it_alone(nix: SandboxedNix, tree: Source) -> None:
    database = '{ networking.hostName = "fine"; services.htpd.enable = true; }'
    evaluation = await nix.evaluate(network(tree, named("nodes.db.config.networking.hostName"), database))
    assert name_of(evaluation) == "fine"


async def test_a_mistake_in_another_machine_names_it(nix: SandboxedNix, tree: Source) -> None:
    with pytest.raises(EvaluationFailed) as failed:
        await nix.evaluate(network(tree, named("nodes.db.config.networking.hostName"), "{\n  x = = 1;\n}"))
    assert failed.value.message.startswith("modules[0] of db:2:7: syntax error")
    assert set(failed.value.told) == {"nodes", "nodes.db"}


async def test_a_failure_says_what_it_read(nix: SandboxedNix, tree: Source) -> None:
    with pytest.raises(EvaluationFailed, match="attribute 'cache' missing") as failed:
        await nix.evaluate(network(tree, named("nodes.cache.config.networking.hostName")))
    assert failed.value.told == {"nodes": '["db", "webserver"]'}


async def test_another_machine_s_files_and_nixpkgs_are_its_own(nix: SandboxedNix, tree: Source) -> None:
    files = {
        "db.nix": b"{ imports = [ ./deep.nix ]; }",
        "deep.nix": b"{ networking.domain = builtins.readFile <nixpkgs/.version>; }",
    }
    source = await nix.add_tree(files)
    of_2020 = await nix.add_path(nixpkgs_folder("OF_2020"))
    wanted = network(tree, named("builtins.substring 0 5 nodes.db.config.networking.domain"))
    other = replace(
        wanted.facts.peers["db"].request, nixpkgs=of_2020, source=source, modules=(Module("db.nix", path="db.nix"),)
    )
    facts = replace(wanted.facts, peers={"db": Peer(other, "evaluate:db")})
    assert name_of(await nix.evaluate(replace(wanted, facts=facts))) == "20-09"


async def test_nothing_that_a_module_says_can_hide_what_it_reads(nix: SandboxedNix, tree: Source) -> None:
    noise = 'lib.foldl\' (_: n: builtins.trace (toString n + lib.concatMapStrings (_: "x") (lib.range 1 4000)) n) 0'
    module = named(f'builtins.seq nodes.db.config.networking.domain (builtins.seq ({noise} (lib.range 1 600)) "loud")')
    evaluation = await nix.evaluate(network(tree, module))
    assert name_of(evaluation) == "loud"
    assert set(evaluation.told) == {"nodes", "nodes.db"}
