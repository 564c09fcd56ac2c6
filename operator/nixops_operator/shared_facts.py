"""What configurations may read of the deployment around their machine, as NixOps' `nodes` and `resources`: the other
machines' configurations and addresses, what EC2 says of groups and key pairs. In memory, and of this process alone.

    pass over a machine, or a deployment ── tell ──► SharedFacts ── known_to ──► evaluation ── the paths that it read
                 ▲                                        │                                          │
                 └──────────── wakes those who have read what is another one now ◄────────────────── told

A fact is named as a module writes it: `nodes.db.config.networking.privateIPv4`. Its value is JSON text. Only machines
of one deployment, in one namespace, know each other; what says so is the deployment's own list, and the owner that a
pass has verified (machine/desired.py). Secrets are no facts.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from nixops_operator.facts.kube import Key
from nixops_operator.facts.nix import SystemInput, Told, configuration_path

NODES = "nodes"
"""The fact which machines there are: a list of names."""
KEY_PAIRS = "resources.ec2KeyPairs"
GROUPS = "resources.ec2SecurityGroups"
ADDRESSES = ("publicIPv4", "privateIPv4")


def address_path(machine: str, option: str) -> str:
    """The fact that an address of a machine is; `option`: one of ADDRESSES."""
    return f"{configuration_path(machine)}.config.networking.{option}"


def _machine_of(path: str) -> str | None:
    """The machine whose fact it is; None: it is the deployment's."""
    prefix = configuration_path("")
    if not path.startswith(prefix):
        return None
    ends = (end for option in ADDRESSES if path.endswith(end := address_path("", option).removeprefix(prefix)))
    return path.removeprefix(prefix).removesuffix(next(ends, ""))


@dataclass(frozen=True)
class MachineFacts:
    """Of one machine. What it does not hold is not known, and `awaited` says what that waits for (path → words).

    `configuration` None: it cannot be said now, and what was known stays. `revision`: another one for another.
    """

    name: str  # in its deployment
    uuid: str  # of its deployment; its own if it has none
    values: Mapping[str, str] = field(default_factory=dict)
    configuration: SystemInput | None = None
    revision: str = ""
    awaited: Mapping[str, str] = field(default_factory=dict)

    @property
    def all(self) -> Mapping[str, str]:
        known = {} if self.configuration is None else {configuration_path(self.name): self.revision}
        return {**self.values, **known}


@dataclass(frozen=True)
class DeploymentFacts:
    """Of one deployment. `machines`: by name."""

    uuid: str
    machines: Mapping[str, Key]
    values: Mapping[str, str]
    awaited: Mapping[str, str] = field(default_factory=dict)

    @property
    def all(self) -> Mapping[str, str]:
        return self.values


@dataclass(frozen=True)
class Reader:
    """A machine that reads facts. `siblings`: name → key of the machines that it knows, itself among them; None: its
    deployment says which."""

    key: Key
    name: str
    uuid: str
    deployment: Key | None
    siblings: Mapping[str, Key] | None = None


@dataclass(frozen=True)
class Known:
    """All that a reader may read now. `configurations`: of other machines, with their revisions."""

    values: Mapping[str, str]
    configurations: Mapping[str, tuple[SystemInput, str]]


_Place = tuple[str, str, str]  # namespace, uuid and path


class SharedFacts:
    """See the module."""

    def __init__(self) -> None:
        self._machines: dict[Key, MachineFacts] = {}
        self._deployments: dict[Key, DeploymentFacts] = {}
        self._readers: defaultdict[_Place, set[Key]] = defaultdict(set)
        self._read_by: dict[Key, frozenset[_Place]] = {}

    def tell_machine(self, key: Key, facts: MachineFacts) -> frozenset[Key]:
        """What a machine is now. Returns who has read what has changed."""
        before = self._machines.get(key)
        if facts.configuration is None and before is not None and before.uuid == facts.uuid:
            facts = replace(facts, configuration=before.configuration, revision=before.revision)
        self._machines[key] = facts
        return self._who_read(key.namespace, before, facts)

    def tell_deployment(self, key: Key, facts: DeploymentFacts) -> frozenset[Key]:
        """As `tell_machine`."""
        before = self._deployments.get(key)
        self._deployments[key] = facts
        return self._who_read(key.namespace, before, facts)

    def forget(self, key: Key) -> frozenset[Key]:
        """The object is gone. Returns who has read what it was."""
        self._note(key, frozenset())
        before = self._machines.pop(key, None) or self._deployments.pop(key, None)
        return self._who_read(key.namespace, before, None)

    def told(self, reader: Reader, paths: Iterable[str]) -> Told:
        """What is known of these now. From now on the reader is among those who have read them, and nothing else."""
        paths = tuple(paths)
        self._note(reader.key, frozenset((reader.key.namespace, reader.uuid, path) for path in paths))
        return {path: self._value(reader, path) for path in paths}

    def known_to(self, reader: Reader) -> Known:
        """Everything that an evaluation for this reader may need."""
        values = dict(self._common(reader))
        configurations = {}
        for name, key in {**self._machines_of(reader), reader.name: reader.key}.items():
            facts = self._facts_of(reader, key)
            if facts is None:
                continue
            values |= facts.values
            if name != reader.name and facts.configuration is not None:
                configurations[name] = (facts.configuration, facts.revision)
        return Known(values, configurations)

    def awaited(self, reader: Reader, path: str) -> tuple[str, bool]:
        """What a fact that is not known waits for, for people; and whether it is only that nobody has looked yet since
        this process began."""
        machine = _machine_of(path)
        facts = self._deployment_of(reader) if machine is None else self._machine_named(reader, machine)
        if facts is None:
            return f"{machine or 'the deployment'} was not looked at yet", True
        return facts.awaited.get(path, "nothing says so yet"), False

    def _value(self, reader: Reader, path: str) -> str | None:
        """As `known_to` has it."""
        machine = _machine_of(path)
        if machine is None:
            return self._common(reader).get(path)
        facts = self._machine_named(reader, machine)
        if facts is None or path == configuration_path(reader.name):
            return None
        return facts.all.get(path)

    def _common(self, reader: Reader) -> Mapping[str, str]:
        """What is no machine's."""
        if reader.siblings is not None:
            return {NODES: json.dumps(sorted(reader.siblings)), KEY_PAIRS: "{}", GROUPS: "{}"}
        deployment = self._deployment_of(reader)
        return deployment.values if deployment is not None else {}

    def _machine_named(self, reader: Reader, name: str) -> MachineFacts | None:
        key = reader.key if name == reader.name else self._machines_of(reader).get(name)
        return self._facts_of(reader, key) if key is not None else None

    def _machines_of(self, reader: Reader) -> Mapping[str, Key]:
        if reader.siblings is not None:
            return reader.siblings
        deployment = self._deployment_of(reader)
        return deployment.machines if deployment is not None else {}

    def _deployment_of(self, reader: Reader) -> DeploymentFacts | None:
        if reader.siblings is not None or reader.deployment is None:
            return None
        facts = self._deployments.get(reader.deployment)
        return facts if facts is not None and facts.uuid == reader.uuid else None

    def _facts_of(self, reader: Reader, key: Key) -> MachineFacts | None:
        facts = self._machines.get(key)
        return facts if facts is not None and facts.uuid == reader.uuid else None

    def _who_read(
        self,
        namespace: str,
        before: MachineFacts | DeploymentFacts | None,
        after: MachineFacts | DeploymentFacts | None,
    ) -> frozenset[Key]:
        found: set[Key] = set()
        for one, other in ((before, after), (after, before)):
            if one is None:
                continue
            others = other.all if other is not None and other.uuid == one.uuid else {}
            for path, value in one.all.items():
                if others.get(path) != value:
                    found |= self._readers.get((namespace, one.uuid, path), frozenset())
        return frozenset(found)

    def _note(self, reader: Key, places: frozenset[_Place]) -> None:
        before = self._read_by.get(reader, frozenset())
        for place in before - places:
            self._readers[place].discard(reader)
            if not self._readers[place]:
                del self._readers[place]
        for place in places - before:
            self._readers[place].add(reader)
        if places:
            self._read_by[reader] = places
        else:
            self._read_by.pop(reader, None)
