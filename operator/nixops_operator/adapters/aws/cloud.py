"""EC2 in one account and region, with one identity: ports.cloud.Cloud on boto3."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, TypeVar

from botocore.exceptions import ClientError

from nixops_operator.adapters.aws import conversion
from nixops_operator.adapters.aws.calls import Calls, all_pages, error_code
from nixops_operator.api.reasons import Reason
from nixops_operator.ec2.rules import Direction, PeerKind, Rule
from nixops_operator.errors import Blocked, InvalidSpec, MissingReference, OutcomeUnknown, Retry
from nixops_operator.facts.cloud import (
    Address,
    Image,
    Instance,
    InstanceAttribute,
    KeyPair,
    LaunchRequest,
    MetadataOptions,
    SecurityGroup,
    Subnet,
    Volume,
    VolumeSettings,
)
from nixops_operator.names import CLUSTER_TAG, UID_TAG

if TYPE_CHECKING:
    from mypy_boto3_ec2.client import EC2Client
    from mypy_boto3_ec2.type_defs import FilterTypeDef

    from nixops_operator.adapters.aws.clients import Clients

T = TypeVar("T")

FILTER_VALUES = 200
"""Most values that one filter takes: EC2 API Reference, "DescribeInstances"."""
TAGS_PER_CALL = 1000
"""Most resources that one CreateTags takes: EC2 API Reference, "CreateTags"."""

GROUP_GONE = ("InvalidGroup.NotFound", "InvalidGroupId.NotFound", "InvalidSecurityGroupID.NotFound")
PREFIX_LIST_GONE = "invalidprefixlistid.notfound"  # AWS writes both Id and ID
RULE_GONE = ("InvalidSecurityGroupRuleId.NotFound", "InvalidPermission.NotFound")


class Boto3Cloud:
    """See ports.cloud.Cloud for what each method promises."""

    def __init__(self, clients: Clients, calls: Calls, learn_account: Callable[[str], object]) -> None:
        self._clients = clients
        self._calls = calls
        self._learn_account = learn_account

    async def account_id(self) -> str:
        account = await self._calls.read(
            "GetCallerIdentity", lambda: self._clients.sts().get_caller_identity()["Account"]
        )
        self._learn_account(account)
        return account

    async def sweep_instances(self, cluster_id: str) -> Mapping[str, Instance]:
        filters = _filters({f"tag:{CLUSTER_TAG}": [cluster_id]})
        found = await self._calls.read("DescribeInstances", lambda: _instances(self._clients.reader(), filters))
        return {instance.id: instance for instance in found if instance.tags.get(CLUSTER_TAG) == cluster_id}

    async def sweep_security_groups(self, cluster_id: str) -> Mapping[str, SecurityGroup]:
        groups = await self._groups(_filters({f"tag:{CLUSTER_TAG}": [cluster_id]}))
        return {group.id: group for group in groups if group.tags.get(CLUSTER_TAG) == cluster_id}

    async def sweep_key_pairs(self, cluster_id: str) -> Mapping[str, KeyPair]:
        filters = _filters({f"tag:{CLUSTER_TAG}": [cluster_id]})
        key_pairs = await self._calls.read("DescribeKeyPairs", lambda: _key_pairs(self._clients.reader(), filters))
        return {pair.name: pair for pair in key_pairs if pair.tags.get(CLUSTER_TAG) == cluster_id}

    async def sweep_addresses(self, cluster_id: str) -> Mapping[str, Address]:
        found = await self._addresses(_filters({f"tag:{CLUSTER_TAG}": [cluster_id]}))
        return {address.id: address for address in found if address.tags.get(CLUSTER_TAG) == cluster_id}

    async def find_addresses(
        self,
        *,
        allocation_id: str | None = None,
        public_address: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> tuple[Address, ...]:
        wanted = {f"tag:{key}": [value] for key, value in (tags or {}).items()}
        if allocation_id is not None:
            wanted["allocation-id"] = [allocation_id]
        if public_address is not None:
            wanted["public-ip"] = [public_address]
        if not wanted:
            raise ValueError("find_addresses without a filter would read the whole account")
        return tuple(
            address
            for address in sorted(await self._addresses(_filters(wanted)), key=lambda address: address.id)
            # Filter values may hold wildcards; what is asked for is meant literally.
            if allocation_id in (None, address.id)
            and public_address in (None, address.public_address)
            and (tags or {}).items() <= address.tags.items()
        )

    async def sweep_volumes(self, cluster_id: str) -> Mapping[str, Volume]:
        found = await self._volumes({f"tag:{CLUSTER_TAG}": [cluster_id]})
        return {volume.id: volume for volume in found if volume.tags.get(CLUSTER_TAG) == cluster_id}

    async def get_volume(self, volume_id: str) -> Volume | None:
        found = await self._volumes({"volume-id": [volume_id]})
        return next((volume for volume in found if volume.id == volume_id), None)

    async def volume_change(self, volume_id: str) -> str:
        filters = _filters({"volume-id": [volume_id]})

        def look() -> str:
            client = self._clients.reader()
            found = all_pages(client, "describe_volumes_modifications", "VolumesModifications", Filters=filters)
            return next((one.get("ModificationState", "") for one in found if one["VolumeId"] == volume_id), "")

        return await self._calls.read("DescribeVolumesModifications", look)

    async def find_instances(
        self, *, instance_id: str | None = None, client_token: str | None = None, tags: Mapping[str, str] | None = None
    ) -> tuple[Instance, ...]:
        wanted = {f"tag:{key}": [value] for key, value in (tags or {}).items()}
        if instance_id is not None:
            wanted["instance-id"] = [instance_id]
        if client_token is not None:
            wanted["client-token"] = [client_token]
        if not wanted:
            raise ValueError("find_instances without a filter would read the whole account")
        filters = _filters(wanted)
        found = await self._calls.read("DescribeInstances", lambda: _instances(self._clients.reader(), filters))
        return tuple(
            instance
            for instance in sorted(found, key=lambda instance: instance.id)
            # Filter values may hold wildcards; what is asked for is meant literally.
            if instance_id in (None, instance.id)
            and client_token in (None, instance.client_token)
            and (tags or {}).items() <= instance.tags.items()
        )

    async def attribute(self, instance_id: str, attribute: InstanceAttribute) -> bool | str:
        def look() -> bool | str:
            client: Any = self._clients.reader()
            if attribute is InstanceAttribute.CREDITS:
                found = client.describe_instance_credit_specifications(InstanceIds=[instance_id])
                return str(found["InstanceCreditSpecifications"][0]["CpuCredits"])
            answer = client.describe_instance_attribute(InstanceId=instance_id, Attribute=attribute.value)
            value: bool | str = answer[_parameter(attribute)]["Value"]
            return value

        is_credits = attribute is InstanceAttribute.CREDITS
        operation = "DescribeInstanceCreditSpecifications" if is_credits else "DescribeInstanceAttribute"
        return await self._calls.read(operation, look)

    async def find_security_group_by_name(self, name: str, vpc_id: str) -> SecurityGroup | None:
        found = await self._groups(_filters({"group-name": [name], "vpc-id": [vpc_id]}))
        return next((group for group in found if (group.name, group.vpc_id) == (name, vpc_id)), None)

    async def get_security_group(self, group_id: str) -> SecurityGroup | None:
        found = await self._groups(_filters({"group-id": [group_id]}))
        return next((group for group in found if group.id == group_id), None)

    async def find_key_pair(self, name: str) -> KeyPair | None:
        filters = _filters({"key-name": [name]})
        found = await self._calls.read("DescribeKeyPairs", lambda: _key_pairs(self._clients.reader(), filters))
        return next((pair for pair in found if pair.name == name), None)

    async def find_image(self, owner: str, name: str, architecture: str) -> Image | None:
        filters = _filters({"name": [name], "architecture": [architecture], "state": ["available"]})
        return await self._calls.read(
            "DescribeImages",
            lambda: conversion.newest_image(
                list(all_pages(self._clients.reader(), "describe_images", "Images", Owners=[owner], Filters=filters))
            ),
        )

    async def get_image(self, image_id: str) -> Image | None:
        filters = _filters({"image-id": [image_id]})

        def look() -> Image | None:
            found = all_pages(
                self._clients.reader(), "describe_images", "Images", IncludeDeprecated=True, Filters=filters
            )
            return conversion.newest_image([image for image in found if image["ImageId"] == image_id])

        return await self._calls.read("DescribeImages", look)

    async def default_subnet(self) -> Subnet:
        subnets = await self._subnets(_filters({"default-for-az": ["true"]}))
        if not subnets:
            raise InvalidSpec(
                "spec.target.ec2.subnetId",
                f"the account has no default subnet in {self._clients.region}; name a subnet",
            )
        return min(subnets, key=lambda subnet: (subnet.zone, subnet.id))

    async def get_subnet(self, subnet_id: str) -> Subnet | None:
        subnets = await self._subnets(_filters({"subnet-id": [subnet_id]}))
        return next((subnet for subnet in subnets if subnet.id == subnet_id), None)

    async def find_placement_group(self, name: str) -> str | None:
        def look() -> str | None:
            try:
                found = self._clients.reader().describe_placement_groups(GroupNames=[name])["PlacementGroups"]
            except ClientError as error:
                if error_code(error) == "InvalidPlacementGroup.Unknown":
                    return None
                raise
            states = [str(one.get("State", "")) for one in found if one.get("GroupName") == name]
            return next((state for state in states if state not in ("deleting", "deleted")), None)

        return await self._calls.read("DescribePlacementGroups", look)

    async def architecture(self, instance_type: str) -> str:
        filters = _filters({"instance-type": [instance_type]})
        supported = await self._calls.read(
            "DescribeInstanceTypes",
            lambda: [
                name
                for answer in all_pages(
                    self._clients.reader(),
                    "describe_instance_types",
                    "InstanceTypes",
                    Filters=filters,
                )
                if answer["InstanceType"] == instance_type
                for name in answer["ProcessorInfo"]["SupportedArchitectures"]
            ],
        )
        return _architecture(supported, instance_type, self._clients.region)

    async def interfaces_in_group(self, group_id: str) -> tuple[str, ...]:
        filters = _filters({"group-id": [group_id]})
        return await self._calls.read(
            "DescribeNetworkInterfaces",
            lambda: tuple(
                sorted(
                    conversion.interface_in_use(answer)
                    for answer in all_pages(
                        self._clients.reader(), "describe_network_interfaces", "NetworkInterfaces", Filters=filters
                    )
                )
            ),
        )

    async def groups_naming(self, group_id: str) -> tuple[str, ...]:
        def look() -> tuple[str, ...]:
            client = self._clients.reader()
            # Two calls: several filters of one call must all match.
            answers = chain.from_iterable(
                all_pages(client, "describe_security_groups", "SecurityGroups", Filters=_filters({name: [group_id]}))
                for name in ("ip-permission.group-id", "egress.ip-permission.group-id")
            )
            return tuple(sorted({answer["GroupId"] for answer in answers} - {group_id}))

        return await self._calls.read("DescribeSecurityGroups", look)

    async def import_key_pair(self, name: str, public_key: str, tags: Mapping[str, str]) -> None:
        reply = await self._calls.write(
            "ImportKeyPair",
            lambda: self._clients.writer().import_key_pair(
                KeyName=name,
                PublicKeyMaterial=public_key.encode(),
                TagSpecifications=conversion.tag_specifications("key-pair", tags),
            ),
            accepted=("InvalidKeyPair.Duplicate",),
        )
        if reply is not None:
            return
        existing = await self.find_key_pair(name)
        if existing is None:
            raise _not_shown(f"key pair {name}")
        if not _is_ours(existing.tags, tags) or existing.public_key != conversion.without_comment(public_key):
            raise _foreign(f"key pair {name}")

    async def delete_key_pair(self, name: str) -> None:
        await self._calls.write(
            "DeleteKeyPair",
            lambda: self._clients.writer().delete_key_pair(KeyName=name),
            accepted=("InvalidKeyPair.NotFound",),
        )

    async def create_security_group(self, name: str, description: str, vpc_id: str, tags: Mapping[str, str]) -> str:
        group_id = await self._calls.write(
            "CreateSecurityGroup",
            lambda: self._clients.writer().create_security_group(
                GroupName=name,
                Description=description,
                VpcId=vpc_id,
                TagSpecifications=conversion.tag_specifications("security-group", tags),
            )["GroupId"],
            accepted=("InvalidGroup.Duplicate",),
        )
        if group_id is not None:
            return group_id
        existing = await self.find_security_group_by_name(name, vpc_id)
        if existing is None:
            raise _not_shown(f"security group {name}")
        if not _is_ours(existing.tags, tags):
            raise _foreign(f"security group {name} in {vpc_id}")
        return existing.id

    async def authorize_rules(self, group_id: str, direction: Direction, rules: Mapping[Rule, str]) -> None:
        ordered = sorted(rules)
        try:
            if not ordered or await self._authorize(group_id, direction, ordered, rules):
                return
        except Blocked as error:
            if len(ordered) == 1 or error.reason not in (Reason.INVALID_SPEC, Reason.QUOTA_EXCEEDED):
                raise
        # One of them exists already, or cannot be made, or there is no room for all of them, and EC2 refused all.
        refusals = []
        for rule in rules:
            try:
                await self._authorize(group_id, direction, [rule], rules)
            except Blocked as error:
                if error.reason is Reason.QUOTA_EXCEEDED:
                    raise Blocked(error.reason, error.message) from error  # no refusal: others may have been made
                refusals.append(error)
        if refusals:
            raise _refusal(group_id, refusals)

    async def revoke_rules(self, group_id: str, direction: Direction, rule_ids: Sequence[str]) -> None:
        if not rule_ids or await self._revoke(group_id, direction, sorted(rule_ids)):
            return
        for rule_id in sorted(rule_ids):
            await self._revoke(group_id, direction, [rule_id])

    async def describe_rules(self, group_id: str, descriptions: Mapping[str, str]) -> None:
        if not descriptions:
            return
        filters = _filters({"group-id": [group_id]})
        # ModifySecurityGroupRules takes whole rules, so the newest ones are read first.
        answers = await self._calls.read(
            "DescribeSecurityGroupRules", lambda: list(_rules(self._clients.reader(), filters))
        )
        changes = [
            conversion.rule_request(answer, descriptions[answer["SecurityGroupRuleId"]])
            for answer in answers
            if answer["SecurityGroupRuleId"] in descriptions
        ]
        if changes:
            await self._calls.write(
                "ModifySecurityGroupRules",
                lambda: self._clients.writer().modify_security_group_rules(
                    GroupId=group_id,
                    SecurityGroupRules=changes,  # type: ignore[arg-type]
                ),
            )

    async def delete_security_group(self, group_id: str) -> None:
        await self._calls.write(
            "DeleteSecurityGroup",
            lambda: self._clients.writer().delete_security_group(GroupId=group_id),
            accepted=GROUP_GONE,
        )

    async def run_instances(self, request: LaunchRequest, token: str) -> str:
        if not token:
            # botocore would invent a random token, and a repeated call would make a second machine.
            raise ValueError("run_instances needs the launch's own token")
        parameters = conversion.launch_parameters(request)
        instance_id = await self._calls.write(
            "RunInstances",
            lambda: self._clients.writer().run_instances(**parameters, ClientToken=token, MinCount=1, MaxCount=1)[
                "Instances"
            ][0]["InstanceId"],
        )
        if not instance_id:
            raise OutcomeUnknown(Reason.PROGRESSING_WITH_RETRY, "RunInstances: the reply names no instance")
        return instance_id

    async def start_instance(self, instance_id: str) -> None:
        await self._calls.write(
            "StartInstances", lambda: self._clients.writer().start_instances(InstanceIds=[instance_id])
        )

    async def reboot_instance(self, instance_id: str) -> None:
        await self._calls.write(
            "RebootInstances", lambda: self._clients.writer().reboot_instances(InstanceIds=[instance_id])
        )

    async def stop_instance(self, instance_id: str) -> None:
        await self._calls.write(
            "StopInstances", lambda: self._clients.writer().stop_instances(InstanceIds=[instance_id])
        )

    async def terminate_instance(self, instance_id: str) -> None:
        await self._calls.write(
            "TerminateInstances",
            lambda: self._clients.writer().terminate_instances(InstanceIds=[instance_id]),
            accepted=("InvalidInstanceID.NotFound",),
        )

    async def set_security_groups(self, instance_id: str, group_ids: Sequence[str]) -> None:
        if not group_ids:
            raise ValueError("an instance is always in at least one security group")
        await self._calls.write(
            "ModifyInstanceAttribute",
            lambda: self._clients.writer().modify_instance_attribute(
                InstanceId=instance_id, Groups=sorted(set(group_ids))
            ),
        )

    async def set_monitoring(self, instance_id: str, enabled: bool) -> None:
        def call() -> object:
            client = self._clients.writer()
            switch = client.monitor_instances if enabled else client.unmonitor_instances
            return switch(InstanceIds=[instance_id])

        await self._calls.write("MonitorInstances" if enabled else "UnmonitorInstances", call)

    async def set_attribute(self, instance_id: str, attribute: InstanceAttribute, value: bool | str) -> None:
        if attribute is InstanceAttribute.CREDITS:
            await self._set_credits(instance_id, str(value))
            return
        parameters: dict[str, Any] = {_parameter(attribute): {"Value": value}}
        await self._calls.write(
            "ModifyInstanceAttribute",
            lambda: self._clients.writer().modify_instance_attribute(InstanceId=instance_id, **parameters),
        )

    async def _set_credits(self, instance_id: str, credit: str) -> None:
        operation = "ModifyInstanceCreditSpecification"

        def call() -> None:
            client: Any = self._clients.writer()
            reply = client.modify_instance_credit_specification(
                InstanceCreditSpecifications=[{"InstanceId": instance_id, "CpuCredits": credit}]
            )
            # It succeeds as a whole, and says of each instance whether it did.
            for one in reply.get("UnsuccessfulInstanceCreditSpecifications", ()):
                refusal: Any = {"Error": one["Error"], "ResponseMetadata": {"HTTPStatusCode": 400}}
                raise ClientError(refusal, operation)

        await self._calls.write(operation, call)

    async def set_instance_profile(self, instance_id: str, name: str) -> None:
        filters = _filters({"instance-id": [instance_id], "state": ["associating", "associated"]})
        found = await self._calls.read(
            "DescribeIamInstanceProfileAssociations",
            lambda: list(
                all_pages(
                    self._clients.reader(),
                    "describe_iam_instance_profile_associations",
                    "IamInstanceProfileAssociations",
                    Filters=filters,
                )
            ),
        )
        present = found[0] if found else {}
        if conversion.profile_name(present) == name:
            return
        association_id = present.get("AssociationId")
        if association_id is not None:
            if name and await self._replace_profile(association_id, name):
                return
            await self._calls.write(
                "DisassociateIamInstanceProfile",
                lambda: self._clients.writer().disassociate_iam_instance_profile(AssociationId=association_id),
                accepted=("InvalidAssociationID.NotFound",),
            )
        if name:
            await self._calls.write(
                "AssociateIamInstanceProfile",
                lambda: self._clients.writer().associate_iam_instance_profile(
                    InstanceId=instance_id, IamInstanceProfile={"Name": name}
                ),
            )

    async def _replace_profile(self, association_id: str, name: str) -> bool:
        """Whether it was replaced: of a running instance alone."""
        reply = await self._calls.write(
            "ReplaceIamInstanceProfileAssociation",
            lambda: self._clients.writer().replace_iam_instance_profile_association(
                AssociationId=association_id, IamInstanceProfile={"Name": name}
            ),
            accepted=("IncorrectInstanceState",),
        )
        return reply is not None

    async def set_metadata(self, instance_id: str, options: MetadataOptions) -> None:
        parameters = conversion.metadata_parameters(options)
        await self._calls.write(
            "ModifyInstanceMetadataOptions",
            lambda: self._clients.writer().modify_instance_metadata_options(InstanceId=instance_id, **parameters),
        )

    async def set_placement_group(self, instance_id: str, name: str) -> None:
        await self._calls.write(
            "ModifyInstancePlacement",
            lambda: self._clients.writer().modify_instance_placement(InstanceId=instance_id, GroupName=name),
        )

    async def allocate_address(self, tags: Mapping[str, str]) -> str:
        allocation_id = await self._calls.write(
            "AllocateAddress",
            lambda: self._clients.writer().allocate_address(
                Domain="vpc", TagSpecifications=conversion.tag_specifications("elastic-ip", tags)
            )["AllocationId"],
        )
        if not allocation_id:
            raise OutcomeUnknown(Reason.PROGRESSING_WITH_RETRY, "AllocateAddress: the reply names no address")
        return allocation_id

    async def associate_address(self, allocation_id: str, instance_id: str) -> None:
        await self._calls.write(
            "AssociateAddress",
            # EC2 would move an association that stands.
            lambda: self._clients.writer().associate_address(
                AllocationId=allocation_id, InstanceId=instance_id, AllowReassociation=False
            ),
        )

    async def disassociate_address(self, association_id: str) -> None:
        await self._calls.write(
            "DisassociateAddress",
            lambda: self._clients.writer().disassociate_address(AssociationId=association_id),
            accepted=("InvalidAssociationID.NotFound",),
        )

    async def release_address(self, allocation_id: str) -> None:
        await self._calls.write(
            "ReleaseAddress",
            lambda: self._clients.writer().release_address(AllocationId=allocation_id),
            accepted=("InvalidAllocationID.NotFound",),
        )

    async def create_volume(self, zone: str, settings: VolumeSettings, tags: Mapping[str, str], token: str) -> str:
        if not token:
            # botocore would invent a random token, and a repeated call would make a second volume.
            raise ValueError("create_volume needs the volume's own token")
        parameters: dict[str, Any] = conversion.volume_parameters(settings)
        if settings.encrypted is not None:
            parameters["Encrypted"] = settings.encrypted
        if settings.snapshot_id is not None:
            parameters["SnapshotId"] = settings.snapshot_id
        named: Any = conversion.tag_specifications("volume", tags)
        volume_id = await self._calls.write(
            "CreateVolume",
            lambda: self._clients.writer().create_volume(
                AvailabilityZone=zone, ClientToken=token, TagSpecifications=named, **parameters
            )["VolumeId"],
        )
        if not volume_id:
            raise OutcomeUnknown(Reason.PROGRESSING_WITH_RETRY, "CreateVolume: the reply names no volume")
        return volume_id

    async def attach_volume(self, volume_id: str, instance_id: str, device: str) -> None:
        try:
            await self._calls.write(
                "AttachVolume",
                lambda: self._clients.writer().attach_volume(VolumeId=volume_id, InstanceId=instance_id, Device=device),
            )
        except OutcomeUnknown:
            raise
        except Retry:
            # In use: by whom says whether an earlier call has done it.
            found = await self.get_volume(volume_id)
            if found is None or (found.instance_id, found.device) != (instance_id, device):
                raise

    async def detach_volume(self, volume_id: str, instance_id: str) -> None:
        await self._calls.write(
            "DetachVolume",
            lambda: self._clients.writer().detach_volume(VolumeId=volume_id, InstanceId=instance_id),
            accepted=("IncorrectState", "InvalidAttachment.NotFound"),
        )

    async def delete_volume(self, volume_id: str) -> None:
        await self._calls.write(
            "DeleteVolume",
            lambda: self._clients.writer().delete_volume(VolumeId=volume_id),
            accepted=("InvalidVolume.NotFound",),
        )

    async def modify_volume(self, volume_id: str, changes: VolumeSettings) -> None:
        parameters: dict[str, Any] = conversion.volume_parameters(changes)
        if not parameters:
            raise ValueError("modify_volume without a change")
        await self._calls.write(
            "ModifyVolume", lambda: self._clients.writer().modify_volume(VolumeId=volume_id, **parameters)
        )

    async def create_tags(self, resource_ids: Sequence[str], tags: Mapping[str, str]) -> None:
        if not tags:
            return
        pairs = conversion.tag_list(tags)
        for some in _batches(sorted(set(resource_ids)), TAGS_PER_CALL):
            await self._calls.write("CreateTags", _tagging(self._clients, some, pairs))

    async def delete_tags(self, resource_ids: Sequence[str], keys: Sequence[str]) -> None:
        if not keys:
            raise ValueError("DeleteTags without a key deletes every tag")
        # Without values: a tag goes whatever its value is.
        named = [{"Key": key} for key in sorted(set(keys))]
        for some in _batches(sorted(set(resource_ids)), TAGS_PER_CALL):
            await self._calls.write("DeleteTags", _untagging(self._clients, some, named))

    async def _volumes(self, wanted: Mapping[str, Sequence[str]]) -> list[Volume]:
        filters = _filters(wanted)

        def look() -> list[Volume]:
            return [
                conversion.volume(one)
                for one in all_pages(self._clients.reader(), "describe_volumes", "Volumes", Filters=filters)
            ]

        return await self._calls.read("DescribeVolumes", look)

    async def _groups(self, filters: list[FilterTypeDef]) -> list[SecurityGroup]:
        def look() -> list[SecurityGroup]:
            client = self._clients.reader()
            answers = list(all_pages(client, "describe_security_groups", "SecurityGroups", Filters=filters))
            rules: dict[str, list[Any]] = defaultdict(list)
            for some in _batches(sorted(answer["GroupId"] for answer in answers), FILTER_VALUES):
                for rule in _rules(client, _filters({"group-id": some})):
                    rules[rule["GroupId"]].append(rule)
            return [conversion.security_group(answer, rules[answer["GroupId"]]) for answer in answers]

        return await self._calls.read("DescribeSecurityGroups", look)

    async def _addresses(self, filters: list[FilterTypeDef]) -> list[Address]:
        # EC2 has no pages for addresses. Those of EC2-Classic, which is no more, had no allocation id.
        return await self._calls.read(
            "DescribeAddresses",
            lambda: [
                conversion.address(answer)
                for answer in self._clients.reader().describe_addresses(Filters=filters)["Addresses"]
            ],
        )

    async def _subnets(self, filters: list[FilterTypeDef]) -> list[Subnet]:
        return await self._calls.read(
            "DescribeSubnets",
            lambda: [
                conversion.subnet(answer)
                for answer in all_pages(self._clients.reader(), "describe_subnets", "Subnets", Filters=filters)
            ],
        )

    async def _authorize(
        self, group_id: str, direction: Direction, rules: Sequence[Rule], descriptions: Mapping[Rule, str]
    ) -> bool:
        """Whether EC2 took the rules; False if it holds one of them already."""
        permissions = [conversion.ip_permission(rule, descriptions[rule]) for rule in rules]

        def call() -> object:
            client: Any = self._clients.writer()
            name = f"authorize_security_group_{direction.value}"
            try:
                return getattr(client, name)(GroupId=group_id, IpPermissions=permissions)
            except ClientError as error:
                if missing := _missing_references(error, group_id, rules):
                    raise _missing(group_id, missing).as_refusal() from error
                raise

        operation = f"AuthorizeSecurityGroup{direction.value.capitalize()}"
        return await self._calls.write(operation, call, accepted=("InvalidPermission.Duplicate",)) is not None

    async def _revoke(self, group_id: str, direction: Direction, rule_ids: Sequence[str]) -> bool:
        """Whether EC2 took the ids; False if it does not know one of them."""

        def call() -> object:
            client: Any = self._clients.writer()
            if direction is Direction.INGRESS:
                return client.revoke_security_group_ingress(GroupId=group_id, SecurityGroupRuleIds=rule_ids)
            return client.revoke_security_group_egress(GroupId=group_id, SecurityGroupRuleIds=rule_ids)

        operation = f"RevokeSecurityGroup{direction.value.capitalize()}"
        return await self._calls.write(operation, call, accepted=RULE_GONE) is not None


def _parameter(attribute: InstanceAttribute) -> str:
    """Its name in parameters and answers."""
    return attribute.value[0].upper() + attribute.value[1:]


def _instances(client: EC2Client, filters: list[FilterTypeDef]) -> list[Instance]:
    return [
        conversion.instance(answer)
        for reservation in all_pages(client, "describe_instances", "Reservations", Filters=filters)
        for answer in reservation["Instances"]
    ]


def _rules(client: EC2Client, filters: list[FilterTypeDef]) -> Iterator[Any]:
    return all_pages(client, "describe_security_group_rules", "SecurityGroupRules", Filters=filters)


def _key_pairs(client: EC2Client, filters: list[FilterTypeDef]) -> list[KeyPair]:
    # EC2 has no pages for key pairs.
    answers = client.describe_key_pairs(Filters=filters, IncludePublicKey=True)["KeyPairs"]
    return [conversion.key_pair(answer) for answer in answers]


def _tagging(clients: Clients, resource_ids: Sequence[str], pairs: list[Any]) -> Callable[[], None]:
    return lambda: clients.writer().create_tags(Resources=resource_ids, Tags=pairs)


def _untagging(clients: Clients, resource_ids: Sequence[str], keys: list[Any]) -> Callable[[], None]:
    return lambda: clients.writer().delete_tags(Resources=resource_ids, Tags=keys)


def _filters(wanted: Mapping[str, Sequence[str]]) -> list[FilterTypeDef]:
    return [{"Name": name, "Values": list(values)} for name, values in sorted(wanted.items())]


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch


def _is_ours(existing: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(existing.get(key) == wanted[key] for key in (CLUSTER_TAG, UID_TAG))


def _missing_references(error: ClientError, group_id: str, rules: Iterable[Rule]) -> set[str]:
    """What rules name and EC2 does not know. Empty where it says something else, as that it does not know the group
    itself."""
    code, text = error_code(error), str(error.response.get("Error", {}).get("Message", ""))
    if code in GROUP_GONE:
        peers = {rule.peer for rule in rules if rule.peer_kind is PeerKind.GROUP and rule.peer != group_id}
        return {peer for peer in peers if peer.rpartition("/")[2] in text}
    if code.lower() == PREFIX_LIST_GONE:
        peers = {rule.peer for rule in rules if rule.peer_kind is PeerKind.PREFIX_LIST}
        return {peer for peer in peers if peer in text} or peers
    return set()


def _missing(group_id: str, references: Iterable[str]) -> MissingReference:
    listed = sorted(references)
    text = f"{', '.join(listed)}: named in rules of {group_id}, and unknown to EC2 in this account and region"
    return MissingReference(listed, f"{text}; correct the rules")


def _refusal(group_id: str, refusals: Sequence[Blocked]) -> Blocked:
    """One error of several rules'. It is no refusal: other rules may have been made."""
    missing = {name for one in refusals if isinstance(one, MissingReference) for name in one.references}
    others = sorted({one.message for one in refusals if not isinstance(one, MissingReference)})
    if not others:
        return _missing(group_id, missing)
    parts = [_missing(group_id, missing).message] if missing else []
    return Blocked(Reason.INVALID_SPEC, "; ".join([*parts, *others]))


def _not_shown(what: str) -> Retry:
    return Retry(Reason.PROGRESSING_WITH_RETRY, f"EC2 says that {what} exists and does not show it yet")


def _foreign(what: str) -> Blocked:
    return Blocked(
        Reason.ADOPTION_CONFLICT,
        f"{what} exists and is not of this object; delete or rename it, or rename the entry in the spec",
    )


def _architecture(supported: Sequence[str], instance_type: str, region: str) -> str:
    for name in ("x86_64", "arm64"):
        if name in supported:
            return name
    if supported:
        raise InvalidSpec(
            "spec.target.ec2.instanceType", f"{instance_type} is neither x86_64 nor arm64: {', '.join(supported)}"
        )
    raise InvalidSpec("spec.target.ec2.instanceType", f"{region} has no instance type {instance_type}")
