"""What the operator adds to a configuration, on the names that nixpkgs has today and on those of 2020."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contract.nix_bench import MODEL, nixpkgs_folder, request
from nixops_operator.adapters.nix.sandboxed_nix import SandboxedNix
from nixops_operator.errors import Blocked
from nixops_operator.facts.nix import Evaluation, KeyFile, Source

# As people wrote it for NixOps, one machine of a network.
NETWORK_MACHINE = """
{ config, pkgs, resources, nodes, name, deploymentName, uuid, ... }: {
  deployment.targetEnv = "ec2";
  deployment.ec2 = {
    region = "us-east-1";
    instanceType = "t2.small";
    keyPair = resources.ec2KeyPairs.my-key-pair;
    securityGroups = [ resources.ec2SecurityGroups.web "default" ];
  };
  deployment.owners = [ "a@example.org" ];
  imports = [ { deployment.owners = [ "b@example.org" ]; deployment.ec2.zone = "us-east-1a"; } ];
  fileSystems."/data" = { autoFormat = true; fsType = "ext4"; device = "/dev/mapper/xvdf"; ec2.size = 10; };
  networking.publicIPv4 = "198.51.100.7";
  environment.etc.seen.text = toString [
    config.deployment.ec2.zone config.deployment.ec2.tenancy config.deployment.targetPort
    config.deployment.owners config.deployment.name config.networking.publicIPv4
  ];
}
"""


@pytest.fixture(params=["", "OF_2020"], ids=["of today", "of 2020"])
def folder(request: pytest.FixtureRequest) -> Path:
    return nixpkgs_folder(request.param)


@pytest.fixture
async def tree(nix: SandboxedNix, folder: Path) -> Source:
    return await nix.add_path(folder)


@pytest.fixture
async def tree_of_2020(nix: SandboxedNix) -> Source:
    return await nix.add_path(nixpkgs_folder("OF_2020"))


def seen(expression: str) -> str:
    """A module whose system cannot be, because of the value of this expression."""
    return (
        f"{{ config, lib, ... }}: {{ assertions = [ {{ assertion = false; message = toString ({expression}); }} ]; }}"
    )


async def value(nix: SandboxedNix, tree: Source, expression: str, *modules: str, **fields: Any) -> str:
    with pytest.raises(Blocked) as failed:
        await nix.evaluate(replace(request(tree, seen(expression), *modules), **fields))
    return failed.value.message.removeprefix("Failed assertions: ")


async def evaluated(nix: SandboxedNix, tree: Source, *modules: str, **fields: Any) -> Evaluation:
    return await nix.evaluate(replace(request(tree, *modules), **fields))


async def failure(nix: SandboxedNix, tree: Source, *modules: str, **fields: Any) -> str:
    with pytest.raises(Blocked) as failed:
        await evaluated(nix, tree, *modules, **fields)
    return failed.value.message


async def test_the_model_example_is_a_system_of_both(nix: SandboxedNix, tree: Source) -> None:
    assert "-nixos-system-webserver-" in (await evaluated(nix, tree, MODEL)).toplevel


async def test_the_operator_s_key_is_trusted_by_the_option_that_there_is(nix: SandboxedNix, tree: Source) -> None:
    keys = "config.nix.settings.trusted-public-keys or config.nix.binaryCachePublicKeys"
    assert "nixops-1:abc=" in await value(nix, tree, keys, trusted_public_key="nixops-1:abc=")


@pytest.mark.parametrize(
    ("module", "version"),
    [
        pytest.param("{ }", "19.03", id="nobody else says it"),
        pytest.param('{ system.stateVersion = "18.09"; }', "18.09", id="the user says it"),
        pytest.param('{ lib, ... }: { system.stateVersion = lib.mkDefault "18.03"; }', "18.03", id="a profile says it"),
    ],
)
async def test_the_machine_s_state_version_is_a_weak_default(
    nix: SandboxedNix, tree: Source, module: str, version: str
) -> None:
    assert await value(nix, tree, "config.system.stateVersion", module, state_version="19.03") == version


async def test_an_unknown_state_version_is_asked_for(nix: SandboxedNix, tree: Source) -> None:
    message = await failure(
        nix, tree, "{ config, ... }: { environment.etc.v.text = config.system.stateVersion; }", state_version=None
    )
    assert "system.stateVersion is not set" in message
    assert "say in a module with which release its NixOS was first installed" in message


async def test_a_state_version_of_the_user_s_needs_no_other(nix: SandboxedNix, tree: Source) -> None:
    said = '{ system.stateVersion = "19.03"; }'
    assert await value(nix, tree, "config.system.stateVersion", said, state_version=None) == "19.03"


async def test_a_machine_of_a_nixops_network_evaluates_unchanged(nix: SandboxedNix, tree: Source) -> None:
    evaluation = await evaluated(nix, tree, NETWORK_MACHINE)
    assert evaluation.warnings == (
        "deployment.{ec2, owners, targetEnv} of NixOps has no effect: the NixMachine's spec decides",
    )


async def test_options_of_nixops_have_its_defaults(nix: SandboxedNix, tree: Source) -> None:
    said = await value(nix, tree, "config.environment.etc.seen.text", NETWORK_MACHINE)
    zone, tenancy, port, *owners, deployment, address = said.split()
    assert (zone, tenancy, port, deployment, address) == ("us-east-1a", "default", "22", "example", "198.51.100.7")
    assert sorted(owners) == ["a@example.org", "b@example.org"]


async def test_a_key_has_nixops_path_and_owner(nix: SandboxedNix, tree: Source) -> None:
    key = "let key = config.deployment.keys.db; in [ key.path key.user key.group key.permissions ]"
    assert await value(nix, tree, key, '{ deployment.keys.db.group = "db"; }') == "/run/keys/db root db 0600"


KEYS = (
    KeyFile("db", "/srv/keys/db", "postgres", "keys", "0640", is_first=True),
    KeyFile("late", "/run/keys/late", "root", "root", "0600", is_first=False),
)


async def test_modules_see_the_declared_keys_as_nixops_showed_them(nix: SandboxedNix, tree: Source) -> None:
    key = "let key = config.deployment.keys.db; in [ key.path key.destDir key.user key.permissions key.uploadAt ]"
    assert await value(nix, tree, key, keys=KEYS) == "/srv/keys/db /srv/keys postgres 0640 pre-activation"
    assert await value(nix, tree, "config.deployment.keys.late.uploadAt", keys=KEYS) == "post-activation"


@pytest.mark.parametrize(
    ("key", "told"),
    [
        pytest.param(
            'user = "mysql"', 'user is "mysql", and the key is delivered with "postgres": say it as user', id="user"
        ),
        pytest.param('destDir = "/run/keys"', 'with "/srv/keys": say it as directory', id="folder"),
        pytest.param('permissions = "0600"', 'with "0640": say it as permissions', id="mode"),
        pytest.param('uploadAt = "post-activation"', 'with "pre-activation": say it as upload', id="time"),
    ],
)
async def test_a_key_that_is_delivered_otherwise_than_modules_say_is_refused(
    nix: SandboxedNix, tree: Source, key: str, told: str
) -> None:
    message = await failure(nix, tree, f"{{ deployment.keys.db.{key}; }}", keys=KEYS)
    assert message.startswith("Failed assertions: deployment.keys.db.")
    assert told in message


async def test_a_key_of_which_modules_say_the_same_is_delivered(nix: SandboxedNix, tree: Source) -> None:
    same = '{ lib, ... }: { deployment.keys.db = lib.mkIf true { user = "postgres"; permissions = "640"; }; }'
    assert (await evaluated(nix, tree, same, keys=KEYS)).toplevel


async def test_each_declared_key_has_its_units(nix: SandboxedNix, tree: Source) -> None:
    units = "map (name: config.systemd.paths.${name}.pathConfig.PathExists) [ ''db-key'' ''late-key'' ]"
    assert await value(nix, tree, units, keys=KEYS) == "/srv/keys/db /run/keys/late"
    waits = "map (name: lib.hasInfix ''until'' config.systemd.services.${name}.preStart) [ ''db-key'' ''late-key'' ]"
    assert (await value(nix, tree, waits, keys=KEYS)).split() == ["1"]


async def test_keys_make_another_system_and_none_leave_it_as_it_was(nix: SandboxedNix, tree: Source) -> None:
    one, other = await evaluated(nix, tree, keys=KEYS), await evaluated(nix, tree)
    assert one.toplevel != other.toplevel
    assert "nixops-keys" not in await value(nix, tree, "lib.attrNames config.system.activationScripts")


@pytest.mark.parametrize("key", ['db = "s3cret"', 'db.text = "s3cret"', 'db.keyCommand = [ "pass" ]'])
async def test_the_content_of_a_key_is_refused(nix: SandboxedNix, tree: Source, key: str) -> None:
    assert await failure(nix, tree, f"{{ deployment.keys.{key}; }}") == (
        "Failed assertions: deployment.keys.db gives the content of a key in Nix, where it would become world-readable "
        "in the store: remove it, and name a Secret for it in spec.keys"
    )


@pytest.mark.parametrize(
    ("module", "named"),
    [
        ('{ deployment.autoLuks.secret.device = "/dev/xvdg"; }', "deployment.autoLuks"),
        ('{ deployment.encryptedLinksTo = [ "db" ]; }', "deployment.encryptedLinksTo"),
        ("{ deployment.storeKeysOnMachine = true; }", "deployment.storeKeysOnMachine"),
        ('{ fileSystems."/data" = { device = "/dev/xvdf"; ec2.encrypt = true; }; }', 'fileSystems."/data".ec2.encrypt'),
    ],
)
async def test_what_would_have_protected_something_is_refused(
    nix: SandboxedNix, tree: Source, module: str, named: str
) -> None:
    message = await failure(nix, tree, module)
    assert named in message
    assert "no counterpart here" in message


async def test_what_protected_nothing_is_not_refused(nix: SandboxedNix, tree: Source) -> None:
    disk = 'fileSystems."/data" = { device = "/dev/xvdf"; ec2 = { encrypt = true; encryptionType = "ebs"; }; };'
    await evaluated(nix, tree, f"{{ deployment.storeKeysOnMachine = false; deployment.autoLuks = {{ }}; {disk} }}")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        pytest.param(
            "{\n  services.htpd.enable = true;\n}",
            "The option `services.htpd' defined in `modules[0]' does not exist.",
            id="unknown option",
        ),
        pytest.param(
            '{ services.httpd.enable = "yes"; }',
            "The option value `services.httpd.enable' in `modules[0]' is not of type `boolean'.",
            id="type",
        ),
        pytest.param(
            '{ imports = [ { networking.hostName = "b"; } ]; networking.hostName = "a"; }',
            "The option `networking.hostName' has conflicting definitions, in `modules[0]' and `modules[0]'.",
            id="conflict",
        ),
    ],
)
async def test_an_error_in_the_words_of_2020_names_the_user_s_file(
    nix: SandboxedNix, tree_of_2020: Source, module: str, message: str
) -> None:
    assert message in await failure(nix, tree_of_2020, module)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        pytest.param(
            "{ config, lib, ... }: { options.own = lib.mkOption { type = lib.types.anything; default = { }; }; "
            "config.environment.etc.own.text = toString (lib.attrNames config.own); }",
            "attribute 'anything' missing",
            id="types.anything",
        ),
        pytest.param("{ nix.settings.sandbox = true; }", "The option `nix.settings' defined in", id="nix.settings"),
        pytest.param(
            "{ lib, ... }: { options = { }; freeformType = lib.types.attrs; }",
            "unsupported attribute `freeformType'",
            id="freeformType",
        ),
        pytest.param(
            "{ lib, ... }: { options.fileSystems = lib.mkOption { type = with lib.types; attrsOf (submodule { }); }; }",
            "is already declared in",
            id="attrsOf for fileSystems",
        ),
    ],
)
async def test_the_tree_of_2020_lacks_what_nixpkgs_lacked(
    nix: SandboxedNix, tree_of_2020: Source, module: str, message: str
) -> None:
    assert message in await failure(nix, tree_of_2020, module)
