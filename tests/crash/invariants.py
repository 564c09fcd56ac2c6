"""What must never be, judged from outside: by the fakes' real state, whatever they show, and by the calls they get."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from fakes.cloud import FakeCloud
from fakes.effects import Effects
from fakes.host import BASE_SYSTEM, UNDER_WAY, FakeHosts, FakeMachine
from fakes.kube import FakeKube, Secret, key_of
from nixops_operator import names
from nixops_operator.api.conditions import Truth, find_condition
from nixops_operator.api.reasons import ConditionType
from nixops_operator.deployment.rules import QUOTA
from nixops_operator.errors import OperatorError
from nixops_operator.facts.cloud import Address, Instance, InstanceState, KeyPair, SecurityGroup, Volume
from nixops_operator.facts.kube import Body, Key, Kind
from nixops_operator.facts.kube import Secret as SeenSecret
from nixops_operator.machine.host_keys import CLIENT_KEY
from nixops_operator.ssh_keys import parse_private_key

CANARY = "content-that-is-to-stay-secret"
"""In the AWS credentials and each key of a machine; nothing but Secrets and machines may hold it."""


class Broken(AssertionError):
    """An invariant does not hold."""


class _Judged(Effects):
    """A log of calls that is judged as it grows."""

    def __init__(self, judge: Judge) -> None:
        super().__init__()
        self._judge = judge

    async def begin(self, effect: str, arguments: Mapping[str, Any]) -> None:
        self._judge.call(effect, arguments)
        await super().begin(effect, arguments)


class Judge:
    """Hears every call and every event, and looks every second. What it finds is kept, too: the core survives any error
    of a call."""

    def __init__(self, kube: FakeKube, cloud: FakeCloud, hosts: FakeHosts, cluster_id: str) -> None:
        self._kube = kube
        self._cloud = cloud
        self._hosts = hosts
        self._cluster_id = cluster_id
        self.broken: list[str] = []
        self.requests: dict[str, object] = {}  # client token → first request
        self.public_keys: dict[str, str] = {}  # name of a key pair that was ever imported → its key
        self.has_terminated = False
        self.may_leave_untagged = False  # EC2 refuses to tag, for ever; or somebody takes tags off
        self.by_hand: set[str] = set()  # ids of instances and addresses that are in somebody else's hands
        self._objects: dict[str, Body] = {}  # by uid, as the last event told
        self._ran_before: dict[str, tuple[object, str | None]] = {}  # uid → configuration that ran last, and its system
        kube.watchers.append(self._event)
        kube.effects = _Judged(self)
        cloud.effects = _Judged(self)

    def holds(self) -> None:
        """Raises Broken with all that was found."""
        if self.broken:
            raise Broken("; ".join(dict.fromkeys(self.broken)))

    def _require(self, is_so: bool, otherwise: str) -> None:
        if not is_so:
            self.broken.append(otherwise)
            raise Broken(otherwise)

    # --- calls ----------------------------------------------------------------------------------------------------

    def call(self, effect: str, arguments: Mapping[str, Any]) -> None:
        """Before it is carried out."""
        if effect != "kube.put_secret":
            told = repr(arguments)
            self._require(CANARY not in told, f"{effect} tells the content of a Secret")
            # The first host key travels in user data; first contact replaces it.
            is_key = "PRIVATE KEY" in told and effect != "ec2.run_instances"
            self._require(not is_key, f"{effect} tells a private key")
        match effect:
            case "ec2.run_instances":
                self._launch(arguments["token"], arguments["request"])
            case "ec2.create_volume":
                self._volume(arguments["token"], {name: value for name, value in arguments.items() if name != "token"})
            case "ec2.detach_volume":
                self._detachment(arguments["volume_id"], arguments["instance_id"])
            case "ec2.delete_volume":
                self._deletion_of_volume(arguments["volume_id"])
            case "ec2.terminate_instance":
                self._termination(arguments["instance_id"])
            case "ec2.release_address":
                self._release(arguments["allocation_id"])
            case "ec2.import_key_pair":
                self._import(arguments["name"], " ".join(arguments["public_key"].split()[:2]), arguments["tags"])
            case "ec2.authorize_rules":
                group = self._cloud.security_groups.get(arguments["group_id"])
                count = sum(one.rule.direction is arguments["direction"] for one in group.rules) if group else 0
                self._require(count + len(arguments["rules"]) <= QUOTA, f"more than {QUOTA} rules in a group")
            case "kube.create_machine" | "kube.replace_spec" | "kube.delete_machine":
                self._write_to_machine(effect, arguments["body"])
            case "kube.put_secret":
                secret = arguments.get("secret")
                if isinstance(secret, SeenSecret) and (arguments.get("data") or "data" not in arguments):
                    self._write_to_secret(arguments["namespace"], secret)

    def _launch(self, token: str, request: object) -> None:
        first = self.requests.setdefault(token, request)
        self._require(first == request, f"token {token} was used with other parameters")
        recorded = [(body.get("status") or {}).get("launch") or {} for body in self._kube.shown(Kind.MACHINE)]
        self._require(
            token in {one.get("token") for one in recorded}, "a launch was sent before its intent was written"
        )

    def _volume(self, token: str, asked: object) -> None:
        first = self.requests.setdefault(token, asked)
        self._require(first == asked, f"token {token} was used with other parameters")
        recorded = [one for body in self._kube.shown(Kind.MACHINE) for one in _volumes(body)]
        self._require(
            token in {one.get("token") for one in recorded}, "a volume was asked for before its intent was written"
        )

    def _detachment(self, volume_id: str, instance_id: str) -> None:
        volume = self._cloud.volumes.get(volume_id)
        hosts = [one for one in self._hosts.machines.values() if volume is not None and one.mounted.get(volume.device)]
        self._require(not hosts, f"{volume_id} was detached from {instance_id} while it was mounted")
        owner = self._owner(volume.tags.get(names.UID_TAG)) if volume is not None else None
        before = self._ran_before.get(owner["metadata"]["uid"]) if owner is not None else None
        if owner is None or before is None or "deletionTimestamp" in owner["metadata"]:
            return
        configuration, system = before
        host = self._host_of(instance_id)
        is_live = host is None or host.current_system != system or owner["spec"].get("configuration") == configuration
        self._require(is_live, f"{volume_id} was detached before the configuration without it was live")

    def _deletion_of_volume(self, volume_id: str) -> None:
        volume = self._cloud.volumes.get(volume_id)
        if volume is None:
            return
        self._require(names.RETAINED_TAG not in volume.tags, f"{volume_id} was deleted though it was let go of")
        owner = self._owner(volume.tags.get(names.UID_TAG))
        policies = {one["name"]: one["deletionPolicy"] for one in _volumes(owner)} if owner is not None else {}
        policy = policies.get(volume.tags.get(names.ENTRY_TAG, ""))
        self._require(policy == "Delete", f"{volume_id} was deleted, and its policy says {policy}")

    def _import(self, name: str, public: str, tags: Mapping[str, str]) -> None:
        self.public_keys.setdefault(name, public)
        owners = [one.owner for one in self._kube.secrets.values() if private_half_of(one, public)]
        is_lasting = any(owner is None or owner.uid == tags[names.UID_TAG] for owner in owners)
        self._require(is_lasting or not owners, f"the private half of {name} goes with another life")

    def _termination(self, instance_id: str) -> None:
        self.has_terminated = True
        tags = self._cloud.instances[instance_id].tags
        owner = self._owner(tags.get(names.UID_TAG))
        self._require(
            names.is_ours(tags, self._cluster_id, tags.get(names.UID_TAG, "")) and not names.is_retained(tags),
            f"{instance_id} was terminated, and does not carry our tags, or is retained",
        )
        is_going = owner is not None and "deletionTimestamp" in owner["metadata"]
        self._require(
            is_going or instance_id == _other_of(owner), f"{instance_id} was terminated, and its machine is to stay"
        )
        policy = owner["spec"].get("deletionPolicy", "Delete") if owner is not None and is_going else "Delete"
        self._require(policy == "Delete", f"{instance_id} was terminated, and is to be retained")
        status = (owner or {}).get("status") or {}
        if not is_going and not status["replacement"].get("refused"):
            host = self._host_of(status["launch"]["instanceId"])
            paths = host.valid_paths - {BASE_SYSTEM} if host is not None else set()
            is_ready = any("nixos-system" in one and not one.endswith(".drv") for one in paths)
            self._require(is_ready, f"{instance_id} was terminated before the other one was ready")

    def _host_of(self, instance_id: str) -> FakeMachine | None:
        """What answers there."""
        instance = self._cloud.instances.get(instance_id)
        found = self._hosts.machines.get((instance.public_address if instance is not None else None) or "")
        return found if found is not None and not found.is_silent else None

    def _release(self, allocation_id: str) -> None:
        """What is ours alone, once its machine is to have it no more."""
        address = self._cloud.addresses.get(allocation_id)
        if address is None:
            return
        uid = address.tags.get(names.UID_TAG, "")
        owner = self._owner(uid)
        is_ours = names.is_ours(address.tags, self._cluster_id, uid) and not names.is_retained(address.tags)
        self._require(is_ours and owner is not None, f"{allocation_id} was released, and is not ours")
        assert owner is not None
        is_going = "deletionTimestamp" in owner["metadata"] and owner["spec"].get("deletionPolicy") != "Retain"
        is_declared = owner["spec"]["target"]["ec2"].get("elasticIp") == {"allocate": True}
        self._require(is_going or not is_declared, f"{allocation_id} was released, and is to stay")

    def _write_to_machine(self, effect: str, body: Body) -> None:
        """Deployments alone write to machines so, and only to those that are theirs by place and uid."""
        metadata = body["metadata"]
        reference = next((one for one in metadata.get("ownerReferences") or () if one.get("controller")), {})
        owner = self._kube.body(Key(Kind.DEPLOYMENT, metadata["namespace"], reference.get("name", "")))
        self._require(
            owner is not None and owner["metadata"]["uid"] == reference.get("uid"),
            f"{effect} of {key_of(body)}, which is no deployment's of its own namespace",
        )

    def _write_to_secret(self, namespace: str, secret: SeenSecret) -> None:
        """What we made is changed and removed by the life that made it alone."""
        stored = self._kube.secrets.get((namespace, secret.name))
        if stored is None or stored.owner is None or stored.type_ == "Opaque":
            return
        body = self._kube.body(Key(stored.owner.kind, namespace, stored.owner.name))
        self._require(
            body is not None and body["metadata"]["uid"] == stored.owner.uid,
            f"Secret {secret.name} of another life was written",
        )

    # --- at any moment --------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Everything that can be seen at any moment."""
        instances = [one for one in self._cloud.instances.values() if one.state.is_live]
        if not self.may_leave_untagged:
            for one in self._things(instances):
                self._require(
                    {names.CLUSTER_TAG, names.UID_TAG} <= one.tags.keys(), f"{one.id} carries no tags of ours"
                )
        self._one_at_a_time(instances)
        addresses = Counter(one.tags.get(names.UID_TAG) for one in self._cloud.addresses.values())
        del addresses[None]  # whoever allocated it
        self._require(all(count <= 1 for count in addresses.values()), f"two addresses of one machine: {addresses}")
        for instance in instances:
            if instance.id not in self.by_hand:
                self._can_be_reached(instance)
                self._shows_a_pinned_key(instance)
        for machine in self._hosts.machines.values():
            under_way = [one for one in machine.activations.values() if one.state in UNDER_WAY]
            self._require(len(under_way) <= 1, f"two activations at once on {machine.address}")

    def _one_at_a_time(self, instances: list[Instance]) -> None:
        """A machine has one live instance. It has two while its status names the other one, of which one serves; who
        lets go of it then, lets go of both."""
        by_uid: dict[str, list[Instance]] = {}
        for one in instances:
            if names.UID_TAG in one.tags and not names.is_retained(one.tags):
                by_uid.setdefault(one.tags[names.UID_TAG], []).append(one)
        for uid, live in by_uid.items():
            owner, ids = self._owner(uid), {one.id for one in live}
            others = ids & {_other_of(owner)}
            self._require(len(live) - len(others) <= 1, f"two live instances of one machine: {sorted(ids)}")
            there = {one.public_address for one in live}
            serving = [host.address for host in self._hosts.machines.values() if host.switches]
            self._require(len(there.intersection(serving)) <= 1, f"two instances serve as one machine: {sorted(ids)}")

    def _can_be_reached(self, instance: Instance) -> None:
        """The private half of a key that was made for it exists, as long as the instance is to stay; and somebody
        answers for it."""
        owner = self._owner(instance.tags.get(names.UID_TAG))
        is_retained = names.is_retained(instance.tags)
        if not is_retained and not self.may_leave_untagged:
            self._require(_is_held(owner), f"{instance.id} is left, and nobody answers for it")
        is_going = owner is not None and "deletionTimestamp" in owner["metadata"] and not is_retained
        public = self.public_keys.get(instance.key_name or "")
        if public is None or is_going:
            return
        self._require(
            any(private_half_of(secret, public) for secret in self._kube.secrets.values()),
            f"the private key that {instance.id} admits is lost",
        )

    def _shows_a_pinned_key(self, instance: Instance) -> None:
        machine = self._hosts.machines.get(instance.public_address or "")
        pinned = pinned_keys(self._kube, instance.id)
        if machine is not None and pinned is not None:
            is_pinned = not pinned.isdisjoint(machine.host_keys)
            self._require(is_pinned, f"{instance.id} shows a host key that nobody pinned")

    def _event(self, what: str, body: Body) -> None:
        uid = body["metadata"]["uid"]
        before = self._objects.pop(uid, None)
        was_held = _is_held(before)
        if before is not None and before["spec"].get("configuration") != body["spec"].get("configuration"):
            host = self._host_of(((body.get("status") or {}).get("launch") or {}).get("instanceId") or "")
            if host is not None and _is_active(before):
                self._ran_before[uid] = before["spec"].get("configuration"), host.current_system
        if what != "DELETED":
            self._objects[uid] = body
        if was_held and not _is_held(self._objects.get(uid)):
            self._let_go(uid, body)

    def _let_go(self, uid: str, body: Body) -> None:
        there = [one for one in self._cloud.instances.values() if one.state is not InstanceState.TERMINATED]
        left = [
            one.id
            for one in self._things(there)
            if one.tags.get(names.UID_TAG) == uid and names.RETAINED_TAG not in one.tags
        ]
        self._require(not left or self.may_leave_untagged, f"{key_of(body)} was let go while {left} was left")

    def _things(self, instances: list[Instance]) -> list[Instance | SecurityGroup | KeyPair | Address | Volume]:
        groups = [one for one in self._cloud.security_groups.values() if one.name != "default"]
        addresses = [one for one in self._cloud.addresses.values() if one.id not in self.by_hand]
        return [*instances, *groups, *self._cloud.key_pairs.values(), *addresses, *_data_volumes(self._cloud)]

    def _owner(self, uid: str | None) -> Body | None:
        return self._objects.get(uid or "")


def _other_of(machine: Body | None) -> str | None:
    """The instance that a machine's status names beside its own."""
    status = (machine or {}).get("status") or {}
    found: str | None = ((status.get("replacement") or {}).get("other") or {}).get("instanceId")
    return found


def _volumes(body: Body) -> list[dict[str, str]]:
    return list((body.get("status") or {}).get("volumes") or ())


def _data_volumes(cloud: FakeCloud) -> list[Volume]:
    return [one for one in cloud.volumes.values() if names.ENTRY_TAG in one.tags]


def _is_held(body: Body | None) -> bool:
    """By our finalizer."""
    return body is not None and names.FINALIZER in body["metadata"].get("finalizers", ())


def _is_active(machine: Body) -> bool:
    """Whether the configuration of its newest spec runs, as it says."""
    told = find_condition(machine, ConditionType.CONFIGURATION_ACTIVE)
    is_newest = told is not None and told.observed_generation == machine["metadata"]["generation"]
    return told is not None and told.status is Truth.TRUE and is_newest


def pinned_keys(kube: FakeKube, instance_id: str) -> set[str] | None:
    """The host keys that are pinned of that instance; None if there is no such Secret."""
    for secret in kube.secrets.values():
        if secret.data.get("instanceId") == instance_id.encode():
            return set(json.loads(secret.data["pinned"]))
    return None


def private_half_of(secret: Secret, public: str) -> bool:
    """Whether the Secret holds the private half of that key."""
    found = (secret.data.get(name) for name in (names.SSH_PRIVATE_KEY, CLIENT_KEY))
    return any(_public_of(private) == public for private in found if private)


@functools.cache
def _public_of(private: bytes) -> str:
    try:
        return parse_private_key(private, "a test's Secret").public
    except OperatorError:
        return ""
