"""From a request to the text that Nix evaluates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any

from nixops_operator.errors import InvalidSpec
from nixops_operator.facts.nix import EvaluationRequest, KeyFile, Module, Source

RESERVED_ARGUMENTS = frozenset(
    {
        # given by the operator
        *("name", "nodes", "resources", "uuid", "deploymentName"),
        # given by NixOS itself (nixpkgs: nixos/lib/eval-config.nix, lib/modules.nix)
        *("lib", "pkgs", "config", "options", "modulesPath", "specialArgs"),
    }
)


def inline_files(modules: tuple[Module, ...]) -> dict[str, bytes]:
    """File name → text of the modules that are given as text, each a file of its own. Empty if there are none.

    Without the byte-order mark that some editors put in front: Nix takes it for a syntax error.
    """
    return {
        inline_name(index): module.text.removeprefix("\ufeff").encode()
        for index, module in enumerate(modules)
        if module.text is not None
    }


def inline_name(index: int) -> str:
    """The file name of the module at this place in the list."""
    return f"module-{index}.nix"


def expression(request: EvaluationRequest, inline: Source | None, peers: Mapping[str, Source | None]) -> str:
    """One Nix expression; its value is the set that entry.nix describes.

    `inline` is the stored tree of `inline_files`, None if that is empty; `peers` has those of the other machines, by
    name. Raises InvalidSpec for a reserved argument name, and for a module path that is absolute, leaves the source, or
    has no source.
    """
    others = {name: _input(peer.request, peers[name]) for name, peer in request.facts.peers.items()}
    facts = sorted(request.facts.values.items())
    texts = {
        "input": json.dumps(_input(request, inline), sort_keys=True),
        "facts": "{" + ", ".join(f"{json.dumps(path)}: {value}" for path, value in facts) + "}",
        "peers": json.dumps(others, sort_keys=True),
    }
    guests = " ".join(f"({_shipped(name)})" for name in ("guest.nix", "nixops.nix"))
    given = " ".join(f"{name} = {nix_string(text)};" for name, text in texts.items())
    return f"({_shipped('entry.nix')}) {{ guests = [ {guests} ]; ownFiles = ({_shipped('own_files.nix')}); {given} }}"


def _input(request: EvaluationRequest, inline: Source | None) -> dict[str, Any]:
    if taken := sorted(RESERVED_ARGUMENTS & set(request.arguments)):
        raise InvalidSpec(
            "spec.configuration.arguments", f"`{taken[0]}` is a name that NixOS or the operator gives: choose another"
        )
    return {
        "name": request.name,
        "deployment": request.deployment,
        "uuid": request.uuid,
        "system": request.system,
        "isEc2": request.is_ec2,
        "nixpkgs": _tree(request.nixpkgs),
        "nixpkgsFolder": request.nixpkgs_folder,
        "source": _tree(request.source),
        "inline": _tree(inline),
        "modules": [_module(index, module, request.source) for index, module in enumerate(request.modules)],
        "stateVersion": request.state_version,
        "trustedPublicKey": request.trusted_public_key,
        "arguments": dict(request.arguments),
        "keys": {key.name: _key(key) for key in request.keys},
    }


def nix_string(text: str) -> str:
    """A Nix string literal of this value: nothing in it is interpolated (Nix manual, "String")."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    # A bare carriage return in the literal would be read as a line feed.
    return '"' + escaped.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t") + '"'


def _tree(source: Source | None) -> dict[str, str] | None:
    return None if source is None else {"path": source.store_path, "hash": source.nar_hash}


def _key(key: KeyFile) -> dict[str, str | bool]:
    return {
        "path": key.path,
        "user": key.user,
        "group": key.group,
        "permissions": key.permissions,
        "isFirst": key.is_first,
    }


def _module(index: int, module: Module, source: Source | None) -> dict[str, str]:
    if module.path is None:
        return {"file": inline_name(index)}
    field = f"spec.configuration.modules[{index}].path"
    if source is None:
        raise InvalidSpec(field, "there is no spec.configuration.source that could hold it")
    path = PurePosixPath(module.path)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise InvalidSpec(field, f"`{module.path}` is not a path inside the source")
    return {"path": str(path)}


def _shipped(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")
