"""EC2 in memory, for everything that uses ports.cloud. States move by hand: `settle()` or `set_state()`.

clouds = FakeClouds()
cloud = clouds.cloud(AwsIdentity("AKIDTEST", "secret"), "us-west-2")
instance_id = await cloud.run_instances(request, token)
cloud.set_state(instance_id, InstanceState.RUNNING)
cloud.effects.drop_reply.add("ec2.run_instances")

No kinder than EC2: ids mean nothing by their order, nor does the order of answers; what was made can be shown late
(`lag_of_ids`), to filters by tag and client token later still (`lag_of_tags`), by the clock `now`; until it is shown, a
call that names it by id fails as if there were no such thing.
"""

from __future__ import annotations

import copy
import fnmatch
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from types import MappingProxyType
from typing import Any, TypeVar

from fakes.effects import Effects, effect
from nixops_operator.api.reasons import Reason
from nixops_operator.ec2.credentials import AwsIdentity
from nixops_operator.ec2.rules import Direction, PeerKind, Rule, allow_all_egress
from nixops_operator.errors import Blocked, InvalidSpec, Lost, MissingReference, NamesNothing, NotOffered, Retry
from nixops_operator.facts.cloud import (
    VOLUME_CHANGING,
    Address,
    Image,
    Instance,
    InstanceAttribute,
    InstanceState,
    KeyPair,
    LaunchRequest,
    MetadataOptions,
    ObservedRule,
    SecurityGroup,
    Subnet,
    Volume,
    VolumeSettings,
)
from nixops_operator.names import CLUSTER_TAG, UID_TAG

ACCOUNT = "123456789012"
NIXOS_OWNER = "427812963091"
DEFAULT_VPC = "vpc-00000000000000001"
DEFAULT_GROUP = "sg-00000000000000001"
NIXOS_IMAGE = "ami-00000000000000001"
_SHOWN = {
    InstanceAttribute.SOURCE_DEST_CHECK: "source_dest_check",
    InstanceAttribute.INSTANCE_TYPE: "instance_type",
    InstanceAttribute.EBS_OPTIMIZED: "ebs_optimized",
}
"""What sweeps show, too, and as which field."""
_OF_STOPPED = (InstanceAttribute.INSTANCE_TYPE, InstanceAttribute.EBS_OPTIMIZED)


@dataclass(frozen=True)
class PublishedImage:
    """An image with what DescribeImages filters by."""

    image: Image
    owner: str
    architecture: str
    created: str  # ISO 8601
    is_available: bool = True
    is_deprecated: bool = False


Lag = timedelta | Callable[[str], timedelta]
"""For everything alike, or by its id, or a key pair's name."""


@dataclass(frozen=True)
class Launch:
    """What EC2 remembers of a client token."""

    request: LaunchRequest
    instance_id: str

    @property
    def user_data(self) -> str:
        return self.request.user_data


Thing = TypeVar("Thing", Instance, SecurityGroup, KeyPair, Address, Volume)


class FakeCloud:
    """ports.cloud.Cloud of one account and region. All state is public: a test is the account's owner."""

    def __init__(
        self,
        account: str = ACCOUNT,
        region: str = "us-west-2",
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.effects = Effects()
        self.chance = random.Random(f"{account} {region}")
        self.account = account
        self.region = region
        self.now = now
        self.instances: dict[str, Instance] = {}
        self.security_groups: dict[str, SecurityGroup] = {
            DEFAULT_GROUP: SecurityGroup(DEFAULT_GROUP, "default", "default VPC security group", DEFAULT_VPC, {}, ())
        }
        self.key_pairs: dict[str, KeyPair] = {}
        self.addresses: dict[str, Address] = {}
        self.most_addresses = 5
        self.most_rules = 60  # of a group, in one direction
        self.volumes: dict[str, Volume] = {}
        self.volume_tokens: dict[str, tuple[tuple[Any, ...], str]] = {}  # token → what it came with, volume id
        self.snapshots: set[str] = set()
        self.volume_changes: dict[str, str] = {}  # volume id → state of its last modification
        self.subnets: dict[str, Subnet] = {
            f"subnet-0000000000000000{n}": Subnet(f"subnet-0000000000000000{n}", DEFAULT_VPC, f"{region}{zone}")
            for n, zone in enumerate("abc", start=1)
        }
        self.default_subnets = set(self.subnets)
        self.prefix_lists: dict[str, int] = {}  # id → its most entries, for each of which a rule counts
        self.placement_groups: set[str] = set()
        self.instance_profiles: set[str] = set()
        self.attributes: dict[str, dict[InstanceAttribute, bool | str]] = {}  # what no sweep shows; by instance
        self.instance_types = {"t3.small": "x86_64", "t3.medium": "x86_64", "m7i.large": "x86_64", "t4g.small": "arm64"}
        self.rebooted: list[str] = []  # whoever plays the machines takes them out
        self.types_without_capacity: set[str] = set()  # none is started anew
        self.zones_without_capacity: set[str] = set()  # none is launched there
        self.subnets_without_addresses: set[str] = set()
        self.not_offered: set[tuple[str, str]] = set()  # instance types, and zones that do not have them
        self.images = {
            NIXOS_IMAGE: PublishedImage(
                Image(NIXOS_IMAGE, "nixos/25.11.20261101.abcdef-x86_64-linux"),
                NIXOS_OWNER,
                "x86_64",
                "2026-11-01T00:00:00.000Z",
            )
        }
        self.launches: dict[tuple[str, str], Launch] = {}  # (zone, token) → launch
        self.hidden: set[str] = set()  # ids, and names of key pairs, that no look shows until they are taken out
        self.lag_of_ids: Lag = timedelta(0)  # until what is made from now on is shown
        self.lag_of_tags: Lag = timedelta(
            0
        )  # until filters by tag and token know it, and its new tags, if that is later
        self.interfaces_linger = timedelta(0)  # how long those of a terminated instance still hold its groups
        self._shown_from: dict[str, datetime] = {}
        self._indexed_from: dict[str, datetime] = {}
        self._tags_of_old: dict[str, Mapping[str, str]] = {}  # what filters know until then, where tags have changed
        self._terminated_at: dict[str, datetime] = {}
        self._without_public_address: set[str] = set()  # launched so
        self._last_number = 0

    # By hand.

    def set_state(self, instance_id: str, state: InstanceState, reason: str = "") -> None:
        """What EC2 does to addresses goes along: a start brings a public address, a stop takes it."""
        instance = self.instances[instance_id]
        if state is InstanceState.TERMINATED:
            self._terminated_at.setdefault(instance_id, self.now())
            if (address := self._address_of(instance_id)) is not None:
                self.addresses[address.id] = replace(address, association_id=None, instance_id=None)
            self.volumes.pop(instance.root_volume_id, None)
            for volume in self.volumes.values():
                if volume.instance_id == instance_id:
                    self.volumes[volume.id] = _free(volume)
            instance = replace(instance, root_volume_id="")
        self.instances[instance_id] = replace(
            instance,
            state=state,
            state_reason=reason,
            private_address=None if state is InstanceState.TERMINATED else instance.private_address,
        )
        self._set_public_address(instance_id)

    def _set_public_address(self, instance_id: str) -> None:
        """Its elastic one as long as it has one; else, while it runs, EC2's own."""
        instance, elastic = self.instances[instance_id], self._address_of(instance_id)
        is_running = instance.state is InstanceState.RUNNING
        if elastic is not None:
            public, is_own = elastic.public_address, None
        elif is_running and instance_id not in self._without_public_address:
            is_kept = instance.public_ip is True and instance.public_address is not None
            public = instance.public_address if is_kept else str(IPv4Address("198.51.100.0") + self._number())
            is_own = True
        else:
            public, is_own = None, False if is_running else None
        self.instances[instance_id] = replace(instance, public_address=public, public_ip=is_own)

    def associate(self, allocation_id: str, instance_id: str | None) -> None:
        """Associate an elastic address by hand, wherever it was before; with None, with nothing."""
        address = self.addresses[allocation_id]
        association_id = self._new_id("eipassoc") if instance_id is not None else None
        self.addresses[allocation_id] = replace(address, association_id=association_id, instance_id=instance_id)
        for one in {address.instance_id, instance_id} & self.instances.keys():
            self._set_public_address(one)

    def allocate(self, tags: Mapping[str, str] = MappingProxyType({})) -> str:
        """Allocate an elastic address by hand."""
        number = self._number()
        address = Address(self._new_id("eipalloc"), str(IPv4Address("198.51.101.0") + number), dict(tags))
        self.addresses[address.id] = address
        return address.id

    def _address_of(self, instance_id: str) -> Address | None:
        return next((one for one in self.addresses.values() if one.instance_id == instance_id), None)

    def settle(self) -> None:
        """Every instance that is on its way arrives."""
        ends = {
            InstanceState.PENDING: InstanceState.RUNNING,
            InstanceState.STOPPING: InstanceState.STOPPED,
            InstanceState.SHUTTING_DOWN: InstanceState.TERMINATED,
        }
        for instance in list(self.instances.values()):
            if instance.state in ends:
                self.set_state(instance.id, ends[instance.state], instance.state_reason)

    def forget_terminated(self) -> None:
        """An hour later: terminated instances are no longer shown."""
        for instance in list(self.instances.values()):
            if instance.state is InstanceState.TERMINATED:
                del self.instances[instance.id]

    def live(self, uid: str) -> list[Instance]:
        """Instances of an owner that count."""
        return [one for one in self.instances.values() if one.state.is_live and one.tags.get(UID_TAG) == uid]

    def deny(self, effect: str) -> None:
        """The right to it is taken away, until `effects.standing_error` loses it.

        EC2 looks at rights before all else: a repeated launch is refused, though its token made an instance.
        """
        text = f"{effect}: UnauthorizedOperation: You are not authorized to perform this operation."
        self.effects.standing_error[effect] = Blocked(Reason.ACCESS_DENIED, text).as_refusal()

    def grant(self, group_id: str, rule: Rule, description: str = "") -> str:
        """Adds a rule, returns its id."""
        observed = ObservedRule(self._new_id("sgr"), rule, description.strip())
        self._set_rules(group_id, (*self.security_groups[group_id].rules, observed))
        return observed.id

    def withdraw(self, group_id: str, rule: Rule) -> None:
        group = self.security_groups[group_id]
        self._set_rules(group_id, tuple(one for one in group.rules if one.rule != rule))

    # Looks.

    @effect("account_id")
    async def account_id(self) -> str:
        return self.account

    @effect("sweep_instances")
    async def sweep_instances(self, cluster_id: str) -> Mapping[str, Instance]:
        return {one.id: one for one in self._indexed(self.instances.values(), {CLUSTER_TAG: cluster_id})}

    @effect("sweep_security_groups")
    async def sweep_security_groups(self, cluster_id: str) -> Mapping[str, SecurityGroup]:
        return {one.id: one for one in self._indexed(self.security_groups.values(), {CLUSTER_TAG: cluster_id})}

    @effect("sweep_key_pairs")
    async def sweep_key_pairs(self, cluster_id: str) -> Mapping[str, KeyPair]:
        return {one.name: one for one in self._indexed(self.key_pairs.values(), {CLUSTER_TAG: cluster_id})}

    @effect("sweep_addresses")
    async def sweep_addresses(self, cluster_id: str) -> Mapping[str, Address]:
        return {one.id: one for one in self._indexed(self.addresses.values(), {CLUSTER_TAG: cluster_id})}

    @effect("find_addresses")
    async def find_addresses(
        self,
        *,
        allocation_id: str | None = None,
        public_address: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> tuple[Address, ...]:
        if allocation_id is None and public_address is None and not tags:
            raise ValueError("find_addresses without a filter would read the whole account")
        found = [
            one
            for one in self.addresses.values()
            if allocation_id in (None, one.id)
            and public_address in (None, one.public_address)
            and self.is_shown(one.id)
        ]
        return tuple(sorted(self._indexed(found, tags) if tags else found, key=lambda one: one.id))

    @effect("sweep_volumes")
    async def sweep_volumes(self, cluster_id: str) -> Mapping[str, Volume]:
        return {one.id: one for one in self._indexed(self.volumes.values(), {CLUSTER_TAG: cluster_id})}

    @effect("get_volume")
    async def get_volume(self, volume_id: str) -> Volume | None:
        return self.volumes.get(volume_id) if self.is_shown(volume_id) else None

    @effect("volume_change")
    async def volume_change(self, volume_id: str) -> str:
        return self.volume_changes.get(volume_id, "")

    @effect("find_instances")
    async def find_instances(
        self, *, instance_id: str | None = None, client_token: str | None = None, tags: Mapping[str, str] | None = None
    ) -> tuple[Instance, ...]:
        if instance_id is None and client_token is None and not tags:
            raise ValueError("find_instances without a filter would read the whole account")
        is_by_id_alone = client_token is None and not tags
        found = [
            one
            for one in self.instances.values()
            if instance_id in (None, one.id) and client_token in (None, one.client_token) and self.is_shown(one.id)
        ]
        if not is_by_id_alone:
            found = self._indexed(found, tags or {})
        return tuple(sorted(found, key=lambda one: one.id))

    @effect("attribute")
    async def attribute(self, instance_id: str, attribute: InstanceAttribute) -> bool | str:
        instance = self._instance(instance_id)
        if attribute in _SHOWN:
            shown: bool | str = getattr(instance, _SHOWN[attribute])
            return shown
        self._judge_credits("DescribeInstanceCreditSpecifications", instance, attribute)
        return self.attributes[instance_id][attribute]

    @effect("find_security_group_by_name")
    async def find_security_group_by_name(self, name: str, vpc_id: str) -> SecurityGroup | None:
        found = [one for one in self.security_groups.values() if self.is_shown(one.id)]
        return next((one for one in found if (one.name, one.vpc_id) == (name, vpc_id)), None)

    @effect("get_security_group")
    async def get_security_group(self, group_id: str) -> SecurityGroup | None:
        return self.security_groups.get(group_id) if self.is_shown(group_id) else None

    @effect("find_key_pair")
    async def find_key_pair(self, name: str) -> KeyPair | None:
        return self.key_pairs.get(name) if self.is_shown(name) else None

    @effect("find_image")
    async def find_image(self, owner: str, name: str, architecture: str) -> Image | None:
        found = [
            one
            for one in self.images.values()
            if one.owner == owner
            and fnmatch.fnmatchcase(one.image.name, name)
            and one.architecture == architecture
            and one.is_available
            and not one.is_deprecated
        ]
        return max(found, key=lambda one: (one.created, one.image.id)).image if found else None

    @effect("get_image")
    async def get_image(self, image_id: str) -> Image | None:
        return self.images[image_id].image if image_id in self.images else None

    @effect("default_subnet")
    async def default_subnet(self) -> Subnet:
        found = [self.subnets[one] for one in self.default_subnets]
        if not found:
            raise InvalidSpec(
                "spec.target.ec2.subnetId", f"the account has no default subnet in {self.region}; name a subnet"
            )
        return min(found, key=lambda one: (one.zone, one.id))

    @effect("get_subnet")
    async def get_subnet(self, subnet_id: str) -> Subnet | None:
        return self.subnets.get(subnet_id)

    @effect("find_placement_group")
    async def find_placement_group(self, name: str) -> str | None:
        return "available" if name in self.placement_groups else None

    @effect("architecture")
    async def architecture(self, instance_type: str) -> str:
        if instance_type not in self.instance_types:
            raise _unknown_type(self.region, instance_type)
        return self.instance_types[instance_type]

    @effect("interfaces_in_group")
    async def interfaces_in_group(self, group_id: str) -> tuple[str, ...]:
        return self._interfaces(group_id)

    @effect("groups_naming")
    async def groups_naming(self, group_id: str) -> tuple[str, ...]:
        return self._groups_naming(group_id)

    # Effects.

    @effect("ec2.import_key_pair")
    async def import_key_pair(self, name: str, public_key: str, tags: Mapping[str, str]) -> None:
        key = " ".join(public_key.split()[:2])
        existing = self.key_pairs.get(name)
        if existing is None:
            self.key_pairs[name] = KeyPair(self._new_id("key"), name, key, dict(tags))
            self._made(name)
        elif not self.is_shown(name):
            raise Retry(Reason.PROGRESSING_WITH_RETRY, f"EC2 says that key pair {name} exists and does not show it yet")
        elif existing.public_key != key or not _is_ours(existing.tags, tags):
            raise Blocked(Reason.ADOPTION_CONFLICT, f"key pair {name} exists and is not of this object").as_refusal()

    @effect("ec2.delete_key_pair")
    async def delete_key_pair(self, name: str) -> None:
        self.key_pairs.pop(name, None)  # shown or not

    @effect("ec2.create_security_group")
    async def create_security_group(self, name: str, description: str, vpc_id: str, tags: Mapping[str, str]) -> str:
        if vpc_id not in {subnet.vpc_id for subnet in self.subnets.values()}:
            raise Blocked(
                Reason.INVALID_SPEC, f"CreateSecurityGroup: InvalidVpcID.NotFound: {vpc_id} does not exist"
            ).as_refusal()
        for group in self.security_groups.values():
            if (group.name.lower(), group.vpc_id) == (name.lower(), vpc_id):
                if not self.is_shown(group.id):
                    raise Retry(
                        Reason.PROGRESSING_WITH_RETRY,
                        f"EC2 says that security group {name} exists and does not show it yet",
                    )
                if not _is_ours(group.tags, tags):
                    raise Blocked(
                        Reason.ADOPTION_CONFLICT, f"security group {name} in {vpc_id} is not of this object"
                    ).as_refusal()
                return group.id
        group_id = self._new_id("sg")
        self.security_groups[group_id] = SecurityGroup(group_id, name, description, vpc_id, dict(tags), ())
        self._made(group_id)
        self.grant(group_id, allow_all_egress())
        return group_id

    @effect("ec2.authorize_rules")
    async def authorize_rules(self, group_id: str, direction: Direction, rules: Mapping[Rule, str]) -> None:
        present = {one.rule for one in self._group(group_id).rules}
        missing = set()
        for rule, description in rules.items():
            if rule.direction is not direction:
                raise ValueError(f"{rule} is no {direction.value} rule")
            is_group = rule.peer_kind is PeerKind.GROUP and rule.peer != group_id
            if (is_group and not self._is_known_group(rule.peer)) or (
                rule.peer_kind is PeerKind.PREFIX_LIST and rule.peer not in self.prefix_lists
            ):
                missing.add(rule.peer)
            elif rule not in present:
                self._judge_room(group_id, rule)
                self.grant(group_id, rule, description)
        if missing:
            listed = ", ".join(sorted(missing))
            raise MissingReference(missing, f"{listed}: named in rules of {group_id}, and unknown to EC2")

    def _judge_room(self, group_id: str, rule: Rule) -> None:
        """Amazon VPC User Guide, "Amazon VPC quotas": for IPv4 and IPv6 apart; groups and prefix lists count for both,
        a prefix list as many times as it may have entries."""
        present = [one.rule for one in self._group(group_id).rules if one.rule.direction is rule.direction]
        for other in (PeerKind.IPV4, PeerKind.IPV6):
            counted = [one for one in (*present, rule) if one.peer_kind is not other]
            if sum(self.prefix_lists.get(one.peer, 1) for one in counted) > self.most_rules:
                raise Blocked(
                    Reason.QUOTA_EXCEEDED,
                    "AuthorizeSecurityGroupIngress: RulesPerSecurityGroupLimitExceeded: The maximum number of rules per"
                    " security group has been reached.",
                )

    @effect("ec2.revoke_rules")
    async def revoke_rules(self, group_id: str, direction: Direction, rule_ids: Sequence[str]) -> None:
        group = self._group(group_id)
        self._set_rules(
            group_id,
            tuple(one for one in group.rules if one.id not in rule_ids or one.rule.direction is not direction),
        )

    @effect("ec2.describe_rules")
    async def describe_rules(self, group_id: str, descriptions: Mapping[str, str]) -> None:
        group = self._group(group_id)
        self._set_rules(
            group_id,
            tuple(replace(one, description=descriptions.get(one.id, one.description).strip()) for one in group.rules),
        )

    @effect("ec2.delete_security_group")
    async def delete_security_group(self, group_id: str) -> None:
        if not self._is_known_group(group_id):
            return
        if self.security_groups[group_id].name == "default":
            raise Blocked(
                Reason.CHANGE_FORBIDDEN, f"DeleteSecurityGroup: CannotDelete: {group_id} is a default group"
            ).as_refusal()
        if self._interfaces(group_id) or self._groups_naming(group_id):
            raise Retry(
                Reason.DELETING, f"DeleteSecurityGroup: DependencyViolation: {group_id} has a dependent object"
            ).as_refusal()
        del self.security_groups[group_id]

    @effect("ec2.run_instances")
    async def run_instances(self, request: LaunchRequest, token: str) -> str:
        if not token:
            raise ValueError("run_instances needs the launch's own token")
        if request.subnet_id not in self.subnets:
            raise InvalidSpec(
                "spec.target.ec2.subnetId", f"RunInstances: InvalidSubnetID.NotFound: {request.subnet_id}"
            ).as_refusal()
        subnet = self.subnets[request.subnet_id]
        # A token counts in the zone of the request's subnet.
        if (launch := self.launches.get((subnet.zone, token))) is not None:
            return self._repeated(launch, request)
        if (request.instance_type, subnet.zone) in self.not_offered:
            text = (
                f"Your requested instance type ({request.instance_type}) is not supported in your requested "
                f"Availability Zone ({subnet.zone})."
            )
            raise NotOffered("spec.target.ec2.instanceType", f"RunInstances: Unsupported: {text}").as_refusal()
        if subnet.zone in self.zones_without_capacity:
            text = f"We currently do not have sufficient {request.instance_type} capacity in {subnet.zone}."
            raise _no_room(f"RunInstances: InsufficientInstanceCapacity: {text}")
        if subnet.id in self.subnets_without_addresses:
            text = f"There are not enough free addresses in subnet '{subnet.id}'."
            raise _no_room(f"RunInstances: InsufficientFreeAddressesInSubnet: {text}")
        instance = self._new_instance(request, token, subnet)
        self.instances[instance.id] = instance
        self._new_root_volume(instance, request)
        self._made(instance.id)
        self.attributes[instance.id] = _attributes(request)
        if request.public_ip is False:
            self._without_public_address.add(instance.id)
        self.launches[subnet.zone, token] = Launch(copy.deepcopy(request), instance.id)
        return instance.id

    @effect("ec2.start_instance")
    async def start_instance(self, instance_id: str) -> None:
        instance = self._instance(instance_id)
        if instance.state is InstanceState.STOPPED:
            if instance.instance_type in self.types_without_capacity:
                text = f"We currently do not have sufficient {instance.instance_type} capacity."
                raise Retry(
                    Reason.INSUFFICIENT_CAPACITY, f"StartInstances: InsufficientInstanceCapacity: {text}"
                ).as_refusal()
            self.instances[instance_id] = replace(
                instance, state=InstanceState.PENDING, state_reason="", launch_time=self.now()
            )
        elif instance.state not in (InstanceState.PENDING, InstanceState.RUNNING):
            text = f"The instance '{instance_id}' is not in a state from which it can be started."
            raise Retry(Reason.STOPPING, f"StartInstances: IncorrectInstanceState: {text}").as_refusal()

    @effect("ec2.reboot_instance")
    async def reboot_instance(self, instance_id: str) -> None:
        if self._instance(instance_id).state is not InstanceState.RUNNING:
            text = f"The instance '{instance_id}' is not in a state from which it can be rebooted."
            raise Retry(Reason.STOPPING, f"RebootInstances: IncorrectInstanceState: {text}").as_refusal()
        self.rebooted.append(instance_id)

    @effect("ec2.stop_instance")
    async def stop_instance(self, instance_id: str) -> None:
        instance = self._instance(instance_id)
        if self.attributes[instance_id][InstanceAttribute.STOP_PROTECTION]:
            raise _protected("StopInstances", instance_id)
        if instance.state is InstanceState.RUNNING:
            self.set_state(instance_id, InstanceState.STOPPING, "Client.UserInitiatedShutdown")
        elif instance.state not in (InstanceState.STOPPING, InstanceState.STOPPED):
            text = f"The instance '{instance_id}' is not in a state from which it can be stopped."
            raise Retry(Reason.PENDING, f"StopInstances: IncorrectInstanceState: {text}").as_refusal()

    @effect("ec2.terminate_instance")
    async def terminate_instance(self, instance_id: str) -> None:
        is_known = instance_id in self.instances and self.is_shown(instance_id)
        protections = (InstanceAttribute.TERMINATION_PROTECTION, InstanceAttribute.STOP_PROTECTION)
        if is_known and any(self.attributes[instance_id][one] for one in protections):
            raise _protected("TerminateInstances", instance_id)
        if is_known and self.instances[instance_id].state is not InstanceState.TERMINATED:
            self.set_state(instance_id, InstanceState.SHUTTING_DOWN, "Client.UserInitiatedShutdown")

    @effect("ec2.set_security_groups")
    async def set_security_groups(self, instance_id: str, group_ids: Sequence[str]) -> None:
        if not group_ids:
            raise ValueError("an instance is always in at least one security group")
        instance = self._instance(instance_id)
        for group_id in group_ids:
            if not self._is_known_group(group_id):
                raise Retry(
                    Reason.SECURITY_GROUP_NOT_READY,
                    f"ModifyInstanceAttribute: InvalidGroup.NotFound: {group_id} does not exist",
                ).as_refusal()
        self.instances[instance_id] = replace(instance, security_group_ids=tuple(sorted(set(group_ids))))

    @effect("ec2.set_monitoring")
    async def set_monitoring(self, instance_id: str, enabled: bool) -> None:
        self._change(instance_id, monitoring=enabled)

    @effect("ec2.set_attribute")
    async def set_attribute(self, instance_id: str, attribute: InstanceAttribute, value: bool | str) -> None:
        instance = self._instance(instance_id)
        if attribute in _OF_STOPPED and instance.state is not InstanceState.STOPPED:
            text = f"The instance '{instance_id}' is not in the 'stopped' state."
            raise Retry(Reason.STOPPING, f"ModifyInstanceAttribute: IncorrectInstanceState: {text}").as_refusal()
        if attribute is InstanceAttribute.INSTANCE_TYPE and value not in self.instance_types:
            raise _unknown_type(self.region, str(value)).as_refusal()
        self._judge_credits("ModifyInstanceCreditSpecification", instance, attribute)
        if attribute in _SHOWN:
            self._change(instance_id, **{_SHOWN[attribute]: value})
        else:
            self.attributes[instance_id][attribute] = value

    @effect("ec2.set_instance_profile")
    async def set_instance_profile(self, instance_id: str, name: str) -> None:
        self._instance(instance_id)
        self._judge_profile("AssociateIamInstanceProfile", name)
        self._change(instance_id, instance_profile=name)

    @effect("ec2.set_metadata")
    async def set_metadata(self, instance_id: str, options: MetadataOptions) -> None:
        is_off = options.endpoint == "disabled"
        before = self._instance(instance_id).metadata
        self._change(instance_id, metadata=replace(before, endpoint="disabled") if is_off else options)

    @effect("ec2.set_placement_group")
    async def set_placement_group(self, instance_id: str, name: str) -> None:
        if self._instance(instance_id).state is not InstanceState.STOPPED:
            text = f"The instance '{instance_id}' is not in the 'stopped' state."
            raise Retry(Reason.STOPPING, f"ModifyInstancePlacement: IncorrectInstanceState: {text}").as_refusal()
        self._judge_placement_group("ModifyInstancePlacement", name)
        self._change(instance_id, placement_group=name)

    @effect("ec2.allocate_address")
    async def allocate_address(self, tags: Mapping[str, str]) -> str:
        if len(self.addresses) >= self.most_addresses:
            text = "AddressLimitExceeded: The maximum number of addresses has been reached."
            raise Blocked(Reason.QUOTA_EXCEEDED, f"AllocateAddress: {text}").as_refusal()
        allocation_id = self.allocate(tags)
        self._made(allocation_id)
        return allocation_id

    @effect("ec2.associate_address")
    async def associate_address(self, allocation_id: str, instance_id: str) -> None:
        address, instance = self._address(allocation_id), self._instance(instance_id)
        if instance.state not in (InstanceState.RUNNING, InstanceState.STOPPED):
            text = f"The {instance.state.value} instance '{instance_id}' is not in a valid state for this operation."
            raise Retry(Reason.PENDING, f"AssociateAddress: InvalidInstanceID: {text}").as_refusal()
        if address.instance_id == instance_id:
            return
        if address.association_id is not None or self._address_of(instance_id) is not None:
            text = f"Resource.AlreadyAssociated: resource {allocation_id} is already associated"
            raise Blocked(Reason.ADOPTION_CONFLICT, f"AssociateAddress: {text}").as_refusal()
        self.associate(allocation_id, instance_id)

    @effect("ec2.disassociate_address")
    async def disassociate_address(self, association_id: str) -> None:
        for address in self.addresses.values():
            if address.association_id == association_id:
                self.associate(address.id, None)
                return

    @effect("ec2.release_address")
    async def release_address(self, allocation_id: str) -> None:
        if allocation_id not in self.addresses or not self.is_shown(allocation_id):
            return
        if self.addresses[allocation_id].association_id is not None:
            text = f"InvalidIPAddress.InUse: Address {allocation_id} is in use."
            raise Retry(Reason.DELETING, f"ReleaseAddress: {text}").as_refusal()
        del self.addresses[allocation_id]

    @effect("ec2.create_volume")
    async def create_volume(self, zone: str, settings: VolumeSettings, tags: Mapping[str, str], token: str) -> str:
        if not token:
            raise ValueError("create_volume needs the volume's own token")
        asked = (zone, settings, dict(tags))
        if token in self.volume_tokens:
            before, volume_id = self.volume_tokens[token]
            if before != asked:
                text = "CreateVolume: IdempotentParameterMismatch: other parameters before"
                raise Lost(Reason.LAUNCH_AMBIGUOUS, text).as_refusal()
            return volume_id
        if settings.size_gib is None:
            raise Blocked(Reason.INVALID_SPEC, "CreateVolume: MissingParameter: size").as_refusal()
        if settings.snapshot_id is not None and settings.snapshot_id not in self.snapshots:
            text = f"CreateVolume: InvalidSnapshot.NotFound: The snapshot '{settings.snapshot_id}' does not exist"
            raise InvalidSpec("spec.target.ec2.volumes", text).as_refusal()
        volume_id = self._new_id("vol")
        self.volume_tokens[token] = (asked, volume_id)
        self.volumes[volume_id] = Volume(volume_id, "available", zone, _settings(settings), dict(tags))
        self._made(volume_id)
        return volume_id

    @effect("ec2.attach_volume")
    async def attach_volume(self, volume_id: str, instance_id: str, device: str) -> None:
        volume, instance = self._volume(volume_id), self._instance(instance_id)
        if (volume.instance_id, volume.device) == (instance_id, device):
            return
        if volume.instance_id:
            text = f"AttachVolume: VolumeInUse: {volume_id} is already attached to an instance"
            raise Retry(Reason.PENDING, text).as_refusal()
        if volume.zone != instance.zone:
            text = f"AttachVolume: InvalidVolume.ZoneMismatch: {volume_id} is not in {instance.zone}"
            raise Blocked(Reason.INVALID_SPEC, text).as_refusal()
        if instance.state not in (InstanceState.RUNNING, InstanceState.STOPPED):
            text = f"AttachVolume: IncorrectState: Instance '{instance_id}' is not 'running'."
            raise Retry(Reason.PENDING, text).as_refusal()
        if any((one.instance_id, one.device) == (instance_id, device) for one in self.volumes.values()):
            text = f"AttachVolume: InvalidParameterValue: {device} is already in use"
            raise Blocked(Reason.INVALID_SPEC, text).as_refusal()
        self.volumes[volume_id] = replace(
            volume, state="in-use", instance_id=instance_id, device=device, attachment="attached"
        )

    @effect("ec2.detach_volume")
    async def detach_volume(self, volume_id: str, instance_id: str) -> None:
        volume = self._volume(volume_id)
        if volume.instance_id == instance_id:
            self.volumes[volume_id] = _free(volume)

    @effect("ec2.delete_volume")
    async def delete_volume(self, volume_id: str) -> None:
        if volume_id not in self.volumes or not self.is_shown(volume_id):
            return
        if self.volumes[volume_id].instance_id:
            text = f"DeleteVolume: VolumeInUse: {volume_id} is currently attached"
            raise Retry(Reason.DELETING, text).as_refusal()
        del self.volumes[volume_id]

    @effect("ec2.modify_volume")
    async def modify_volume(self, volume_id: str, changes: VolumeSettings) -> None:
        volume = self._volume(volume_id)
        if self.volume_changes.get(volume_id) in VOLUME_CHANGING:
            text = f"Cannot modify volume {volume_id} in modification state {self.volume_changes[volume_id].upper()}"
            raise Retry(Reason.PENDING, f"ModifyVolume: IncorrectModificationState: {text}").as_refusal()
        wanted = {name: value for name, value in vars(changes).items() if value is not None}
        if not wanted:
            raise ValueError("modify_volume without a change")
        if (changes.size_gib or math.inf) < (volume.settings.size_gib or 0):
            text = f"New size cannot be smaller than existing size {volume.settings.size_gib}"
            raise Blocked(Reason.INVALID_SPEC, f"ModifyVolume: InvalidParameterValue: {text}").as_refusal()
        self.volumes[volume_id] = replace(volume, settings=replace(volume.settings, **wanted))
        self.volume_changes[volume_id] = "optimizing"

    @effect("ec2.create_tags")
    async def create_tags(self, resource_ids: Sequence[str], tags: Mapping[str, str]) -> None:
        for resource_id in resource_ids:
            self._retag(resource_id, lambda before: {**before, **tags})

    @effect("ec2.delete_tags")
    async def delete_tags(self, resource_ids: Sequence[str], keys: Sequence[str]) -> None:
        if not keys:
            raise ValueError("DeleteTags without a key deletes every tag")
        for resource_id in resource_ids:
            self._retag(resource_id, lambda before: {key: before[key] for key in before.keys() - set(keys)})

    def _retag(self, resource_id: str, change: Callable[[Mapping[str, str]], dict[str, str]]) -> None:
        pair = next((one for one in self.key_pairs.values() if one.id == resource_id), None)
        if pair is not None:
            self._tags_change(pair.name, pair.tags)
            self.key_pairs[pair.name] = replace(pair, tags=change(pair.tags))
        elif resource_id in self.volumes:
            volume = self._volume(resource_id)
            self._tags_change(volume.id, volume.tags)
            self.volumes[volume.id] = replace(volume, tags=change(volume.tags))
        elif resource_id in self.security_groups:
            group = self._group(resource_id)
            self._tags_change(group.id, group.tags)
            self.security_groups[group.id] = replace(group, tags=change(group.tags))
        elif resource_id in self.addresses:
            address = self._address(resource_id)
            self._tags_change(address.id, address.tags)
            self.addresses[address.id] = replace(address, tags=change(address.tags))
        else:
            instance = self._instance(resource_id)
            self._tags_change(instance.id, instance.tags)
            self.instances[instance.id] = replace(instance, tags=change(instance.tags))

    # What is shown, and to whom.

    def is_shown(self, name: str) -> bool:
        """Whether looks show the thing of that id, or key pair of that name, and calls may name it."""
        return name not in self.hidden and self._shown_from.get(name, self.now()) <= self.now()

    def _made(self, name: str) -> None:
        now = self.now()
        self._shown_from[name] = now + _lag(self.lag_of_ids, name)
        self._indexed_from[name] = max(self._shown_from[name], now + _lag(self.lag_of_tags, name))
        self._tags_of_old.pop(name, None)

    def _tags_change(self, name: str, before: Mapping[str, str]) -> None:
        if self._indexed_from.get(name, self.now()) <= self.now():
            self._tags_of_old[name] = before
            self._indexed_from[name] = self.now() + _lag(self.lag_of_tags, name)

    def _indexed(self, things: Iterable[Thing], tags: Mapping[str, str]) -> list[Thing]:
        """Those that filters by these tags find now; in any order."""
        found = [one for one in things if tags.items() <= self._filtered_by(one).items() and self._is_indexed(one)]
        self.chance.shuffle(found)
        return found

    def _is_indexed(self, thing: Instance | SecurityGroup | KeyPair | Address | Volume) -> bool:
        name = _name(thing)
        is_late = self._indexed_from.get(name, self.now()) > self.now() and name not in self._tags_of_old
        return self.is_shown(name) and not is_late

    def _filtered_by(self, thing: Instance | SecurityGroup | KeyPair | Address | Volume) -> Mapping[str, str]:
        name = _name(thing)
        if self._indexed_from.get(name, self.now()) <= self.now():
            return thing.tags
        return self._tags_of_old.get(name, thing.tags)

    def _new_id(self, prefix: str) -> str:
        return f"{prefix}-{self.chance.getrandbits(68):017x}"

    def _number(self) -> int:
        self._last_number += 1
        return self._last_number

    def _instance(self, instance_id: str) -> Instance:
        if instance_id not in self.instances or not self.is_shown(instance_id):
            raise Retry(
                Reason.NOT_FOUND, f"InvalidInstanceID.NotFound: instance {instance_id} does not exist"
            ).as_refusal()
        return self.instances[instance_id]

    def _address(self, allocation_id: str) -> Address:
        if allocation_id not in self.addresses or not self.is_shown(allocation_id):
            text = f"InvalidAllocationID.NotFound: The allocation ID '{allocation_id}' does not exist"
            raise Retry(Reason.NOT_FOUND, text).as_refusal()
        return self.addresses[allocation_id]

    def _volume(self, volume_id: str) -> Volume:
        if volume_id not in self.volumes or not self.is_shown(volume_id):
            raise Retry(Reason.NOT_FOUND, f"InvalidVolume.NotFound: volume {volume_id} does not exist").as_refusal()
        return self.volumes[volume_id]

    def _new_root_volume(self, instance: Instance, request: LaunchRequest) -> None:
        asked = request.root_volume.settings if request.root_volume is not None else VolumeSettings()
        settings = _settings(replace(asked, size_gib=asked.size_gib or 4))
        self.volumes[instance.root_volume_id] = Volume(
            instance.root_volume_id,
            "in-use",
            instance.zone,
            settings,
            dict(request.tags),
            instance.id,
            "/dev/xvda",
            "attached",
        )
        self._made(instance.root_volume_id)

    def _change(self, instance_id: str, **fields: Any) -> None:
        self.instances[instance_id] = replace(self._instance(instance_id), **fields)

    def _judge_credits(self, operation: str, instance: Instance, attribute: InstanceAttribute) -> None:
        if attribute is InstanceAttribute.CREDITS and not instance.instance_type.startswith("t"):
            text = f"InstanceCreditSpecification.NotSupported: {instance.id} is of no burstable type"
            raise InvalidSpec("spec.target.ec2.credits", f"{operation}: {text}").as_refusal()

    def _judge_profile(self, operation: str, name: str | None) -> None:
        if name and name not in self.instance_profiles:
            text = f"InvalidParameterValue: Value ({name}) for parameter iamInstanceProfile.name is invalid."
            raise NamesNothing("spec.target.ec2.instanceProfile", f"{operation}: {text}").as_refusal()

    def _judge_placement_group(self, operation: str, name: str | None) -> None:
        if name and name not in self.placement_groups:
            text = f"{operation}: InvalidPlacementGroup.Unknown: {name} is unknown"
            raise NamesNothing("spec.target.ec2.placementGroup", text).as_refusal()

    def _is_known_group(self, group_id: str) -> bool:
        return group_id in self.security_groups and self.is_shown(group_id)

    def _group(self, group_id: str) -> SecurityGroup:
        if not self._is_known_group(group_id):
            raise Retry(
                Reason.NOT_FOUND, f"InvalidGroup.NotFound: security group {group_id} does not exist"
            ).as_refusal()
        return self.security_groups[group_id]

    def _set_rules(self, group_id: str, rules: tuple[ObservedRule, ...]) -> None:
        group = self.security_groups[group_id]
        self.security_groups[group_id] = replace(group, rules=tuple(sorted(rules, key=lambda one: one.id)))

    def _interfaces(self, group_id: str) -> tuple[str, ...]:
        return tuple(
            sorted(
                f"eni-{one.id.removeprefix('i-')} ({one.id})"
                for one in self.instances.values()
                if group_id in one.security_group_ids and self._holds_groups(one)
            )
        )

    def _holds_groups(self, instance: Instance) -> bool:
        if instance.state is not InstanceState.TERMINATED:
            return True
        ended = self._terminated_at.get(instance.id)
        return ended is not None and self.now() < ended + self.interfaces_linger

    def _groups_naming(self, group_id: str) -> tuple[str, ...]:
        return tuple(
            sorted(
                group.id
                for group in self.security_groups.values()
                if group.id != group_id and any(one.rule.peer == group_id for one in group.rules)
            )
        )

    def _repeated(self, launch: Launch, request: LaunchRequest) -> str:
        if request != launch.request:
            raise Lost(
                Reason.LAUNCH_AMBIGUOUS, "RunInstances: IdempotentParameterMismatch: other parameters before"
            ).as_refusal()
        instance = self.instances.get(launch.instance_id)
        if instance is None or instance.state is InstanceState.TERMINATED:
            raise Lost(
                Reason.TERMINATED, "RunInstances: IdempotentInstanceTerminated: the instance is terminated"
            ).as_refusal()
        return launch.instance_id

    def _new_instance(self, request: LaunchRequest, token: str, subnet: Subnet) -> Instance:
        groups = request.security_group_ids or (DEFAULT_GROUP,)
        if request.image_id not in self.images:
            raise Blocked(
                Reason.IMAGE_NOT_FOUND, f"RunInstances: InvalidAMIID.NotFound: {request.image_id} does not exist"
            ).as_refusal()
        if request.instance_type not in self.instance_types:
            raise _unknown_type(self.region, request.instance_type).as_refusal()
        is_known = request.key_name in self.key_pairs and self.is_shown(str(request.key_name))
        if request.key_name is not None and not is_known:
            raise Blocked(
                Reason.KEY_PAIR_NOT_READY, f"RunInstances: InvalidKeyPair.NotFound: {request.key_name} does not exist"
            ).as_refusal()
        for group_id in groups:
            if not self._is_known_group(group_id):
                raise Blocked(
                    Reason.SECURITY_GROUP_NOT_READY, f"RunInstances: InvalidGroup.NotFound: {group_id} does not exist"
                ).as_refusal()
        self._judge_placement_group("RunInstances", request.placement_group)
        self._judge_profile("RunInstances", request.instance_profile)
        number = self._number()
        return Instance(
            id=self._new_id("i"),
            state=InstanceState.PENDING,
            state_reason="",
            instance_type=request.instance_type,
            image_id=request.image_id,
            zone=subnet.zone,
            subnet_id=subnet.id,
            private_address=f"172.31.{number // 250 % 250}.{number % 250 + 4}",
            public_address=None,
            key_name=request.key_name,
            security_group_ids=tuple(sorted(set(groups))),
            tags=dict(request.tags),
            launch_time=self.now(),
            client_token=token,
            monitoring=request.monitoring,
            metadata=request.metadata,
            ebs_optimized=bool(request.ebs_optimized),
            tenancy=request.tenancy or "default",
            placement_group=request.placement_group or "",
            instance_profile=request.instance_profile or "",
            root_volume_id=self._new_id("vol"),
        )


class FakeClouds:
    """ports.cloud.Clouds. `accounts`: access key id → account; any other key gets AuthFailure from every call."""

    def __init__(
        self,
        accounts: Mapping[str, str] | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.accounts = dict(accounts if accounts is not None else {"AKIDTEST": ACCOUNT})
        self.now = now
        self.worlds: dict[tuple[str, str], FakeCloud] = {}

    def cloud(self, identity: AwsIdentity, region: str) -> FakeCloud:
        account = self.accounts.get(identity.access_key_id)
        if account is None:
            return _Refused(region)
        return self.world(account, region)

    def world(self, account: str = ACCOUNT, region: str = "us-west-2") -> FakeCloud:
        """The same EC2, whoever asks."""
        if (account, region) not in self.worlds:
            self.worlds[account, region] = FakeCloud(account, region, self.now)
        return self.worlds[account, region]


class _RefusedEffects(Effects):
    async def begin(self, effect: str, arguments: Mapping[str, Any]) -> None:
        await super().begin(effect, arguments)
        raise Blocked(Reason.AUTH_FAILURE, "AuthFailure: AWS was not able to validate the provided access credentials")


class _Refused(FakeCloud):
    def __init__(self, region: str) -> None:
        super().__init__(region=region)
        self.effects = _RefusedEffects()


def _no_room(text: str) -> Retry:
    return Retry(Reason.INSUFFICIENT_CAPACITY, text, timedelta(seconds=30)).as_refusal()


def _protected(operation: str, instance_id: str) -> Blocked:
    text = f"{operation}: OperationNotPermitted: {instance_id} is protected from that"
    return Blocked(Reason.CHANGE_FORBIDDEN, text).as_refusal()


def _attributes(request: LaunchRequest) -> dict[InstanceAttribute, bool | str]:
    found: dict[InstanceAttribute, bool | str] = {
        InstanceAttribute.TERMINATION_PROTECTION: bool(request.termination_protection),
        InstanceAttribute.STOP_PROTECTION: bool(request.stop_protection),
        InstanceAttribute.SHUTDOWN_BEHAVIOR: request.shutdown_behavior or "stop",
    }
    if request.instance_type.startswith("t"):
        usual = "standard" if request.instance_type.startswith("t2.") else "unlimited"
        found[InstanceAttribute.CREDITS] = request.credits or usual
    return found


def _free(volume: Volume) -> Volume:
    return replace(volume, state="available", instance_id="", device="", attachment="")


def _settings(asked: VolumeSettings) -> VolumeSettings:
    """With what EC2 gives where nothing is said."""
    kind = asked.type or "gp3"
    is_gp3 = kind == "gp3"
    return VolumeSettings(
        asked.size_gib,
        kind,
        asked.iops or (3000 if is_gp3 else None),
        asked.throughput_mib or (125 if is_gp3 else None),
        bool(asked.encrypted),
        asked.snapshot_id,
    )


def _lag(lag: Lag, name: str) -> timedelta:
    return lag if isinstance(lag, timedelta) else lag(name)


def _name(thing: Instance | SecurityGroup | KeyPair | Address | Volume) -> str:
    """What it is known by: a key pair's name, another's id."""
    return thing.name if isinstance(thing, KeyPair) else thing.id


def _is_ours(existing: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(existing.get(key) == wanted[key] for key in (CLUSTER_TAG, UID_TAG))


def _unknown_type(region: str, instance_type: str) -> InvalidSpec:
    return InvalidSpec("spec.target.ec2.instanceType", f"{region} has no instance type {instance_type}")
