"""A command in the lab's network, or in one of its machines: what `lab run` and `lab machine exec` become.

Tests start it themselves (testing.py), since a start of `lab` costs most of a second of CPU, and they look often.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nixops_lab import environment, network
from nixops_lab.control import Control, find_machine
from nixops_lab.control_plane import kubectl
from nixops_lab.paths import LabPaths
from nixops_lab.report import LabError


@dataclass(frozen=True)
class Command:
    """`argv[0]` is looked up on the PATH of `variables`, which are its whole environment."""

    argv: list[str]
    variables: dict[str, str]


def of_network(paths: LabPaths, variables: Mapping[str, str], command: Sequence[str]) -> Command:
    """With the caller's environment, and `variables` (`environment.variables`) on top."""
    # nsenter itself is looked up here, the command after it with the lab's PATH.
    return Command([*network.entering(paths.namespace), *command], environment.inside(paths, variables))


def of_machine(paths: LabPaths, control: Control, name: str, command: Sequence[str]) -> Command:
    """In all namespaces of the machine's init, as root. Raises LabError if it is off, or as `machine`."""
    found = machine(paths, control, name)
    if found["leader"] is None:
        raise LabError(f"{found['name']} is off")
    clean = {
        "PATH": "/run/current-system/sw/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
    }
    terminal = {name: os.environ[name] for name in ("TERM",) if name in os.environ}
    return Command(["nsenter", f"--target={found['leader']}", "--all", "--", *command], {**clean, **terminal})


def machine(paths: LabPaths, control: Control, name: str) -> dict[str, Any]:
    """One of `Control.machines`. `name`: its own, or a NixMachine's. Raises LabError if none or several fit."""
    machines = control.machines()
    known = any(each["name"] == name for each in machines)
    # The API is asked only for a name that is none of a machine's.
    listed = "" if known else kubectl(paths, ["get", "nixmachines.nixops.dev", "--all-namespaces", "--output=json"])
    return dict(find_machine(name, machines, json.loads(listed)["items"] if listed else []))
