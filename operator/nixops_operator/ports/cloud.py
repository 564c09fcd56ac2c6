"""EC2, as the operator sees it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from nixops_operator.ec2.credentials import AwsIdentity
from nixops_operator.ec2.rules import Direction, Rule
from nixops_operator.effects import effect, look, port
from nixops_operator.facts.cloud import (
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

__all__ = [
    "Address",
    "AwsIdentity",
    "Cloud",
    "Clouds",
    "Image",
    "Instance",
    "InstanceAttribute",
    "InstanceState",
    "KeyPair",
    "LaunchRequest",
    "MetadataOptions",
    "ObservedRule",
    "SecurityGroup",
    "Subnet",
    "Volume",
    "VolumeSettings",
]


@port
class Cloud(Protocol):
    """EC2 in one account and region, with one identity. Error text never holds a secret.

    All: connect limit 5 s, read limit 30 s; reads are repeated up to three times inside, writes never (a repeat is the
    caller's decision).
    Raises, all: Retry (`Throttled`, `ProgressingWithRetry`), Blocked (`AuthFailure`, `AccessDenied`, `Expired`). An
    error of an effect has `is_refusal` set where EC2 said that it did nothing (any 4xx; throttling and missing
    capacity, which EC2 answers with 503 and 500), or where nothing was sent.
    """

    @look
    async def account_id(self) -> str:
        """The account (STS GetCallerIdentity)."""

    @look
    async def sweep_instances(self, cluster_id: str) -> Mapping[str, Instance]:
        """All instances tagged `nixops.dev:cluster=<cluster_id>`, every state, all pages; id → instance."""

    @look
    async def sweep_security_groups(self, cluster_id: str) -> Mapping[str, SecurityGroup]:
        """All security groups with that tag and their rules; id → group."""

    @look
    async def sweep_key_pairs(self, cluster_id: str) -> Mapping[str, KeyPair]:
        """All key pairs with that tag; name → key pair."""

    @look
    async def sweep_addresses(self, cluster_id: str) -> Mapping[str, Address]:
        """All elastic addresses with that tag; allocation id → address."""

    @look
    async def find_addresses(
        self,
        *,
        allocation_id: str | None = None,
        public_address: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> tuple[Address, ...]:
        """Elastic addresses of the account that match every filter given, whoever owns them."""

    @look
    async def sweep_volumes(self, cluster_id: str) -> Mapping[str, Volume]:
        """All EBS volumes with that tag, every state, all pages; id → volume."""

    @look
    async def get_volume(self, volume_id: str) -> Volume | None:
        """The volume of that id, whatever its tags; None where EC2 does not show it."""

    @look
    async def volume_change(self, volume_id: str) -> str:
        """How the last modification of a volume stands, in EC2's word: `modifying`, `optimizing`, `completed`,
        `failed`; empty if there was none."""

    @look
    async def find_instances(
        self, *, instance_id: str | None = None, client_token: str | None = None, tags: Mapping[str, str] | None = None
    ) -> tuple[Instance, ...]:
        """Instances that match every filter given, in every state. By filter, never by id list: an unknown id gives an
        empty answer."""

    @look
    async def attribute(self, instance_id: str, attribute: InstanceAttribute) -> bool | str:
        """One attribute of an instance (DescribeInstanceAttribute, DescribeInstanceCreditSpecifications). Raises Retry
        (`NotFound`) for an instance that EC2 does not know, or not yet; InvalidSpec(`spec.target.ec2.credits`) for the
        credits of one that is not burstable."""

    @look
    async def find_security_group_by_name(self, name: str, vpc_id: str) -> SecurityGroup | None:
        """The group of that name in that VPC, whoever owns it; to judge an `InvalidGroup.Duplicate`."""

    @look
    async def get_security_group(self, group_id: str) -> SecurityGroup | None:
        """The group of that id, whoever owns it, or None."""

    @look
    async def find_key_pair(self, name: str) -> KeyPair | None:
        """The key pair of that name, whoever owns it."""

    @look
    async def find_image(self, owner: str, name: str, architecture: str) -> Image | None:
        """Newest available image of `owner` whose name matches the pattern `name`, for `x86_64` or `arm64`; ties by
        id."""

    @look
    async def get_image(self, image_id: str) -> Image | None:
        """The image of that id, deprecated ones included."""

    @look
    async def default_subnet(self) -> Subnet:
        """The default VPC's default subnet of the lowest zone. Raises Blocked (`InvalidSpec`) where there is none: say
        so, name subnetId."""

    @look
    async def get_subnet(self, subnet_id: str) -> Subnet | None:
        """That subnet, or None."""

    @look
    async def find_placement_group(self, name: str) -> str | None:
        """EC2's word for the state of the placement group of that name (`available`), or None: there is none."""

    @look
    async def architecture(self, instance_type: str) -> str:
        """`x86_64` or `arm64`. Raises InvalidSpec(`spec.target.ec2.instanceType`) for a type that EC2 does not know."""

    @look
    async def interfaces_in_group(self, group_id: str) -> tuple[str, ...]:
        """What still uses a group: descriptions of its network interfaces as `eni-… (i-…)`, sorted."""

    @look
    async def groups_naming(self, group_id: str) -> tuple[str, ...]:
        """Ids of other groups whose rules name this group as a peer, sorted."""

    @effect("ec2.import_key_pair")
    async def import_key_pair(self, name: str, public_key: str, tags: Mapping[str, str]) -> None:
        """Make a key pair of an own public key.

        Changes: one key pair with its tags, in one call.
        Repeating: gives `InvalidKeyPair.Duplicate`; then the existing one is looked at: same public key and our cluster
        and uid tags = done, else Blocked (`AdoptionConflict`).
        """

    @effect("ec2.delete_key_pair")
    async def delete_key_pair(self, name: str) -> None:
        """Delete a key pair. Repeating: safe, a missing name succeeds."""

    @effect("ec2.create_security_group")
    async def create_security_group(self, name: str, description: str, vpc_id: str, tags: Mapping[str, str]) -> str:
        """Make a group, return its id.

        Changes: one group with its tags and AWS' allow-all egress rule.
        Repeating: gives `InvalidGroup.Duplicate`; then the existing one is looked at: our cluster and uid tags = its id
        is returned, else Blocked (`AdoptionConflict`).
        """

    @effect("ec2.authorize_rules")
    async def authorize_rules(self, group_id: str, direction: Direction, rules: Mapping[Rule, str]) -> None:
        """Add rules (rule → description) of one direction.

        Changes: in one call, all or nothing; where EC2 refuses that for the sake of one rule, each is sent singly, in
        the order given: the good ones are made, and the error comes at the end. Where there is no room for all, that
        ends it. Repeating: safe, rules that exist are accepted.
        Raises: MissingReference - security groups or prefix lists that rules name do not exist, or not yet. Blocked
        (`InvalidSpec`) - a rule that EC2 does not take; (`QuotaExceeded`) - no room for it. Retry (`NotFound`) - the
        group itself does not exist, or not yet.
        """

    @effect("ec2.revoke_rules")
    async def revoke_rules(self, group_id: str, direction: Direction, rule_ids: Sequence[str]) -> None:
        """Remove rules by `sgr-…` id. Repeating: safe, `.NotFound` is accepted."""

    @effect("ec2.describe_rules")
    async def describe_rules(self, group_id: str, descriptions: Mapping[str, str]) -> None:
        """Set descriptions (rule id → text) where only they differ. Repeating: safe."""

    @effect("ec2.delete_security_group")
    async def delete_security_group(self, group_id: str) -> None:
        """Delete a group. Repeating: safe, NotFound succeeds. Raises Retry (`Deleting`) on DependencyViolation."""

    @effect("ec2.run_instances")
    async def run_instances(self, request: LaunchRequest, token: str) -> str:
        """Start one instance from a frozen request, return its id.

        Changes: one instance, its volumes and their tags, in one call.
        Repeating: safe with the same token and parameters: the first instance is returned.
        Raises: OutcomeUnknown - repeat the same call. Retry - throttled, no capacity. Blocked - quota, permission,
            unknown image, type, key pair, group. NamesNothing - a profile or placement group that is unknown, or not
            shown yet. NotOffered - a type that another zone may have.
            Lost (`Terminated`) - the instance of this token is gone (`IdempotentInstanceTerminated`).
            Lost (`LaunchAmbiguous`) - `IdempotentParameterMismatch`: the token was used with other parameters.
        Source: EC2 Developer Guide, "Ensuring idempotency in Amazon EC2 API requests".
        """

    @effect("ec2.start_instance")
    async def start_instance(self, instance_id: str) -> None:
        """Start a stopped instance. Repeating: safe, a running instance stays as it is. Raises Retry (`Stopping`) in a
        state from which it cannot be started, with EC2's words."""

    @effect("ec2.reboot_instance")
    async def reboot_instance(self, instance_id: str) -> None:
        """Have a running instance restart; one that does not shut down within four minutes is restarted by force.
        Addresses stay. Repeating: safe, but restarts it again. Raises Retry (`Stopping`) in another state."""

    @effect("ec2.stop_instance")
    async def stop_instance(self, instance_id: str) -> None:
        """Stop a running instance; volumes and private address stay. Repeating: safe, a stopped instance stays as it
        is. Raises Retry (`Pending`) in a state from which it cannot be stopped, Blocked (`ChangeForbidden`) where stop
        protection is on."""

    @effect("ec2.terminate_instance")
    async def terminate_instance(self, instance_id: str) -> None:
        """Terminate an instance. Repeating: safe; NotFound succeeds. The reply proves nothing: look for `terminated`.
        Raises Blocked (`ChangeForbidden`) for one with termination or stop protection."""

    @effect("ec2.set_security_groups")
    async def set_security_groups(self, instance_id: str, group_ids: Sequence[str]) -> None:
        """Replace the instance's whole set of groups (ModifyInstanceAttribute Groups). Repeating: safe. Raises Retry
        (`SecurityGroupNotReady`) for a group that EC2 does not know, or not yet."""

    @effect("ec2.set_monitoring")
    async def set_monitoring(self, instance_id: str, enabled: bool) -> None:
        """Switch detailed monitoring (MonitorInstances, UnmonitorInstances). Repeating: safe."""

    @effect("ec2.set_attribute")
    async def set_attribute(self, instance_id: str, attribute: InstanceAttribute, value: bool | str) -> None:
        """Change one attribute of a live instance (ModifyInstanceAttribute, ModifyInstanceCreditSpecification).
        Repeating: safe. Raises Retry (`Stopping`) where that takes a stopped instance and it is none, Blocked
        (`InvalidSpec`) for a value that it cannot have, as the credits of one that is not burstable."""

    @effect("ec2.set_instance_profile")
    async def set_instance_profile(self, instance_id: str, name: str) -> None:
        """Give an instance that runs or is stopped that IAM instance profile in place of another; with an empty name,
        none.

        Changes: its association, by Associate-, Replace- or DisassociateIamInstanceProfile, as it stands now.
        Repeating: safe. Raises NamesNothing(`spec.target.ec2.instanceProfile`) for a profile that EC2 does not know, or
        not yet; Retry (`NotFound`) for such an instance.
        """

    @effect("ec2.set_metadata")
    async def set_metadata(self, instance_id: str, options: MetadataOptions) -> None:
        """Change what its metadata service gives out, and to whom (ModifyInstanceMetadataOptions); of one that is to be
        off, nothing else is changed. EC2 takes a moment to carry it out, see Instance.metadata_pending. Repeating:
        safe."""

    @effect("ec2.set_placement_group")
    async def set_placement_group(self, instance_id: str, name: str) -> None:
        """Move a stopped instance into that placement group; with an empty name, out of the one it is in
        (ModifyInstancePlacement). Repeating: safe. Raises Retry (`Stopping`) for an instance that is not stopped,
        NamesNothing(`spec.target.ec2.placementGroup`) for a group that EC2 does not know, or not yet."""

    @effect("ec2.allocate_address")
    async def allocate_address(self, tags: Mapping[str, str]) -> str:
        """Get an elastic address, return its allocation id.

        Changes: one address with its tags, in one call.
        Repeating: never; it gives a second one, since EC2 knows no token here. Raises Blocked (`QuotaExceeded`) where
        the account has as many as it may have.
        """

    @effect("ec2.associate_address")
    async def associate_address(self, allocation_id: str, instance_id: str) -> None:
        """Associate an elastic address with a running or stopped instance, in place of its public address of EC2's; an
        association that stands is never moved. Repeating: safe. Raises Blocked (`AdoptionConflict`) where the address
        or the instance is associated otherwise, Retry (`NotFound`) for an address or instance that EC2 does not know,
        or not yet, Retry (`Pending`) for an instance that has not started yet."""

    @effect("ec2.disassociate_address")
    async def disassociate_address(self, association_id: str) -> None:
        """Take an elastic address off its instance, which gets a public address of EC2's again if it had one before.
        Repeating: safe, an unknown association is accepted."""

    @effect("ec2.release_address")
    async def release_address(self, allocation_id: str) -> None:
        """Give an elastic address back to EC2. Repeating: safe, an unknown one is accepted. Raises Retry (`Deleting`)
        while it is associated."""

    @effect("ec2.create_volume")
    async def create_volume(self, zone: str, settings: VolumeSettings, tags: Mapping[str, str], token: str) -> str:
        """Make a volume, empty or of a snapshot, and return its id.

        Changes: one volume with its tags, in one call.
        Repeating: safe with the same token and parameters: the first volume is returned.
        Raises: OutcomeUnknown - repeat the same call. Blocked - quota, permission. InvalidSpec - values that do not go
            together, or a snapshot that does not exist. Lost (`LaunchAmbiguous`) - the token was used with other
            parameters.
        Source: EC2 API Reference, "CreateVolume".
        """

    @effect("ec2.attach_volume")
    async def attach_volume(self, volume_id: str, instance_id: str, device: str) -> None:
        """Attach it to an instance of its zone, running or stopped. Repeating: safe, one that is attached there stays
        so. Raises Retry (`Pending`) for one that is not available, Blocked (`InvalidSpec`) for a device that is taken
        or another zone."""

    @effect("ec2.detach_volume")
    async def detach_volume(self, volume_id: str, instance_id: str) -> None:
        """Detach it, never by force: the machine has to have let go of it. Repeating: safe, one that is not attached
        stays so."""

    @effect("ec2.delete_volume")
    async def delete_volume(self, volume_id: str) -> None:
        """Delete it, with what is in it. Repeating: safe, NotFound succeeds. Raises Retry (`Deleting`) for one that is
        attached."""

    @effect("ec2.modify_volume")
    async def modify_volume(self, volume_id: str, changes: VolumeSettings) -> None:
        """Change size, type, IOPS or throughput of a volume, attached or not; what is None stays.

        EC2 works on it for seconds to hours (`volume_change`), while the volume is in use. Repeating: once it is under
        way gives Retry (`Pending`), and what it was about is then shown. Raises Blocked (`QuotaExceeded`) for one that
        was changed too often of late, InvalidSpec for values that do not go together.
        """

    @effect("ec2.create_tags")
    async def create_tags(self, resource_ids: Sequence[str], tags: Mapping[str, str]) -> None:
        """Add or overwrite tags. Repeating: safe."""

    @effect("ec2.delete_tags")
    async def delete_tags(self, resource_ids: Sequence[str], keys: Sequence[str]) -> None:
        """Remove tags by key, whatever their values. Repeating: safe, missing keys are accepted. Raises ValueError
        without keys: EC2 would delete every tag (EC2 API Reference, "DeleteTags")."""


@port
class Clouds(Protocol):
    """Gives the Cloud of an identity and region. Equal identities share one."""

    @look
    def cloud(self, identity: AwsIdentity, region: str) -> Cloud: ...
