"""An AWS account as its owner sees it, in memory and behind HTTP: what a contract test does by hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from fakes.cloud import DEFAULT_GROUP, DEFAULT_VPC, FakeCloud, FakeClouds
from nixops_lab.ec2.testing import ACCESS_KEY, SECRET_KEY, RunningLayer
from nixops_operator.ec2.credentials import AwsIdentity
from nixops_operator.ec2.rules import Rule
from nixops_operator.effects import effects_of
from nixops_operator.facts.cloud import Instance, InstanceState, KeyPair, SecurityGroup
from nixops_operator.ports.cloud import Cloud, Clouds

REGION = "us-west-2"
KNOWN = AwsIdentity(ACCESS_KEY, SECRET_KEY)
UNKNOWN = AwsIdentity("AKIAUNKNOWN000000000", "no-secret")
PATIENCE = 30.0

# Effect → the EC2 operation that carries it out.
OPERATIONS = {
    "ec2.import_key_pair": "ImportKeyPair",
    "ec2.delete_key_pair": "DeleteKeyPair",
    "ec2.create_security_group": "CreateSecurityGroup",
    "ec2.authorize_rules": "AuthorizeSecurityGroupIngress",
    "ec2.revoke_rules": "RevokeSecurityGroupIngress",
    "ec2.describe_rules": "ModifySecurityGroupRules",
    "ec2.delete_security_group": "DeleteSecurityGroup",
    "ec2.run_instances": "RunInstances",
    "ec2.start_instance": "StartInstances",
    "ec2.reboot_instance": "RebootInstances",
    "ec2.stop_instance": "StopInstances",
    "ec2.terminate_instance": "TerminateInstances",
    "ec2.set_security_groups": "ModifyInstanceAttribute",
    "ec2.create_volume": "CreateVolume",
    "ec2.attach_volume": "AttachVolume",
    "ec2.detach_volume": "DetachVolume",
    "ec2.delete_volume": "DeleteVolume",
    "ec2.modify_volume": "ModifyVolume",
    "ec2.set_monitoring": "MonitorInstances",
    "ec2.set_attribute": "ModifyInstanceAttribute",
    "ec2.set_metadata": "ModifyInstanceMetadataOptions",
    "ec2.set_placement_group": "ModifyInstancePlacement",
    "ec2.set_instance_profile": "AssociateIamInstanceProfile",
    "ec2.allocate_address": "AllocateAddress",
    "ec2.associate_address": "AssociateAddress",
    "ec2.disassociate_address": "DisassociateAddress",
    "ec2.release_address": "ReleaseAddress",
    "ec2.create_tags": "CreateTags",
    "ec2.delete_tags": "DeleteTags",
}
assert set(OPERATIONS) == effects_of(Cloud)


class World(Protocol):
    clouds: Clouds
    cloud: Cloud
    default_vpc: str
    default_group: str

    async def until(self, instance_id: str, state: InstanceState) -> Instance: ...

    async def stop(self, instance_id: str) -> None: ...

    async def stopping(self, instance_id: str) -> None: ...

    async def slow_boots(self) -> None:
        """Whatever is launched from now on stays pending."""

    async def add_group(self, name: str, tags: Mapping[str, str]) -> str: ...

    async def add_key_pair(self, name: str, public_key: str, tags: Mapping[str, str]) -> None: ...

    async def add_placement_group(self, name: str) -> None: ...

    async def add_instance_profile(self, name: str) -> None: ...

    async def add_snapshot(self, volume_id: str) -> str: ...

    def drop_reply(self, effect: str) -> None: ...

    def hide(self, *names: str) -> None: ...

    def show(self) -> None: ...

    def hide_from_filters(self) -> None:
        """What is made, or tagged anew, from now on is found by id alone."""


@dataclass
class FakeWorld:
    clouds: FakeClouds
    cloud: FakeCloud
    default_vpc: str = DEFAULT_VPC
    default_group: str = DEFAULT_GROUP

    @classmethod
    def new(cls) -> FakeWorld:
        clouds = FakeClouds({KNOWN.access_key_id: "123456789012"})
        return cls(clouds, clouds.cloud(KNOWN, REGION))

    async def until(self, instance_id: str, state: InstanceState) -> Instance:
        self.cloud.settle()
        assert self.cloud.instances[instance_id].state is state
        return self.cloud.instances[instance_id]

    async def stop(self, instance_id: str) -> None:
        await self.stopping(instance_id)
        self.cloud.settle()

    async def stopping(self, instance_id: str) -> None:
        self.cloud.set_state(instance_id, InstanceState.STOPPING, "Client.UserInitiatedShutdown")

    async def slow_boots(self) -> None:
        """Nothing here boots by itself."""

    async def add_group(self, name: str, tags: Mapping[str, str]) -> str:
        group_id = f"sg-by-hand-{name}"
        self.cloud.security_groups[group_id] = SecurityGroup(group_id, name, "by hand", DEFAULT_VPC, dict(tags), ())
        return group_id

    async def add_key_pair(self, name: str, public_key: str, tags: Mapping[str, str]) -> None:
        self.cloud.key_pairs[name] = KeyPair(f"key-by-hand-{name}", name, public_key, dict(tags))

    async def add_placement_group(self, name: str) -> None:
        self.cloud.placement_groups.add(name)

    async def add_instance_profile(self, name: str) -> None:
        self.cloud.instance_profiles.add(name)

    async def add_snapshot(self, volume_id: str) -> str:
        self.cloud.snapshots.add("snap-0123456789abcdef0")
        return "snap-0123456789abcdef0"

    def drop_reply(self, effect: str) -> None:
        self.cloud.effects.drop_reply.add(effect)

    def hide(self, *names: str) -> None:
        self.cloud.hidden.update(names)

    def show(self) -> None:
        self.cloud.hidden.clear()

    def hide_from_filters(self) -> None:
        self.cloud.lag_of_tags = timedelta(hours=1)


class RealWorld:
    """The adapter against the lab's strict EC2."""

    def __init__(self, layer: RunningLayer, clouds: Clouds) -> None:
        self.layer = layer
        self.clouds = clouds
        self.cloud = clouds.cloud(KNOWN, REGION)
        self.owner = layer.client()
        self.default_vpc = self.owner.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"][0][
            "VpcId"
        ]
        groups = self.owner.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["default"]}])
        self.default_group = next(
            one["GroupId"] for one in groups["SecurityGroups"] if one["VpcId"] == self.default_vpc
        )

    def close(self) -> None:
        self.owner.close()

    async def until(self, instance_id: str, state: InstanceState) -> Instance:
        deadline = time.monotonic() + PATIENCE
        while True:
            found = await self.cloud.find_instances(instance_id=instance_id)
            if [one.state for one in found] == [state]:
                return found[0]
            assert time.monotonic() < deadline, f"{found} is not {state}"
            await asyncio.sleep(0.02)

    async def stop(self, instance_id: str) -> None:
        await asyncio.to_thread(self.owner.stop_instances, InstanceIds=[instance_id])
        await self.until(instance_id, InstanceState.STOPPED)

    async def stopping(self, instance_id: str) -> None:
        self.layer.turn(stopping_seconds=3600)
        await asyncio.to_thread(self.owner.stop_instances, InstanceIds=[instance_id])

    async def slow_boots(self) -> None:
        await asyncio.to_thread(self.layer.turn, pending_seconds=3600)

    async def add_group(self, name: str, tags: Mapping[str, str]) -> str:
        reply = await asyncio.to_thread(
            self.owner.create_security_group,
            GroupName=name,
            Description="by hand",
            VpcId=self.default_vpc,
            **_tagged("security-group", tags),
        )
        return str(reply["GroupId"])

    async def add_key_pair(self, name: str, public_key: str, tags: Mapping[str, str]) -> None:
        await asyncio.to_thread(
            self.owner.import_key_pair,
            KeyName=name,
            PublicKeyMaterial=public_key.encode(),
            **_tagged("key-pair", tags),
        )

    async def add_placement_group(self, name: str) -> None:
        await asyncio.to_thread(self.owner.create_placement_group, GroupName=name, Strategy="spread")

    async def add_instance_profile(self, name: str) -> None:
        iam = self.layer.client("iam")
        known = {one["InstanceProfileName"] for one in iam.list_instance_profiles()["InstanceProfiles"]}
        if name not in known:  # moto, where they are, serves all tests
            await asyncio.to_thread(iam.create_instance_profile, InstanceProfileName=name, Path="/machines/")
        iam.close()

    async def add_snapshot(self, volume_id: str) -> str:
        made = await asyncio.to_thread(self.owner.create_snapshot, VolumeId=volume_id)
        return str(made["SnapshotId"])

    def drop_reply(self, effect: str) -> None:
        self.layer.fault("commit-drop", OPERATIONS[effect])

    def hide(self, *names: str) -> None:
        self.layer.turn(visibility_seconds=3600)

    def show(self) -> None:
        self.layer.turn(visibility_seconds=0)

    def hide_from_filters(self) -> None:
        self.layer.turn(**{"visibility.tags": 3600})


def _tagged(kind: str, tags: Mapping[str, str]) -> dict[str, Any]:
    if not tags:
        return {}
    return {"TagSpecifications": [{"ResourceType": kind, "Tags": [{"Key": k, "Value": v} for k, v in tags.items()]}]}


def rules_of(group: SecurityGroup | None) -> set[Rule]:
    assert group is not None
    return {one.rule for one in group.rules}
