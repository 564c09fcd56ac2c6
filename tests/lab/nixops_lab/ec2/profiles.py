"""IAM instance profiles of instances. The profiles themselves are in IAM, which is moto's.

Facts: EC2 API Reference, "AssociateIamInstanceProfile", "ReplaceIamInstanceProfileAssociation",
"DisassociateIamInstanceProfile", "DescribeIamInstanceProfileAssociations".
"""

from typing import Any

from nixops_lab.ec2 import ids
from nixops_lab.ec2.cloud import Cloud
from nixops_lab.ec2.errors import Ec2Error, incorrect_state
from nixops_lab.ec2.filters import select
from nixops_lab.ec2.records import Instance, ProfileAssociation
from nixops_lab.ec2.region import Region


async def associate_iam_instance_profile(cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """For an instance that has none."""
    profile = await cloud.profile(params["IamInstanceProfile"])
    (instance,) = ids.pick(ids.INSTANCE, [params["InstanceId"]], region.visible(region.instances))
    if instance.profile is not None:
        raise Ec2Error("IncorrectState", f"There is an existing association for instance {instance.id}")
    if instance.state not in {"running", "stopped"}:
        raise incorrect_state(f"The instance '{instance.id}' is not in the 'running' or 'stopped' states.")
    return _associated(region, instance, ProfileAssociation(region.new_ids.new("iip-assoc"), profile))


async def replace_iam_instance_profile_association(
    cloud: Cloud, region: Region, params: dict[str, Any]
) -> dict[str, Any]:
    """In place of another, on a running instance; the association gets another id."""
    profile = await cloud.profile(params["IamInstanceProfile"])
    instance = _of_association(region, params["AssociationId"])
    if instance.state != "running":
        raise incorrect_state(f"The instance '{instance.id}' is not in the 'running' state.")
    return _associated(region, instance, ProfileAssociation(region.new_ids.new("iip-assoc"), profile))


async def disassociate_iam_instance_profile(_cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """The instance has none then."""
    instance = _of_association(region, params["AssociationId"])
    entry = _entry(instance, "disassociating")
    region.change(instance.id, profile=None)
    return {"IamInstanceProfileAssociation": entry}


async def describe_iam_instance_profile_associations(
    _cloud: Cloud, region: Region, params: dict[str, Any]
) -> dict[str, Any]:
    """Those of live instances, by filter."""
    having = [one for one in region.visible(region.instances).values() if one.profile is not None and one.is_live]
    readers = {"instance-id": lambda one: [one.id], "state": lambda one: ["associated"]}
    found = select(having, params.get("Filters", []), readers, lambda one: {})
    shown, token = region.paged(found, params, "AssociationIds")
    return {"IamInstanceProfileAssociations": [_entry(one, "associated") for one in shown], "NextToken": token}


def _of_association(region: Region, association_id: str) -> Instance:
    found = [one for one in region.instances.values() if one.profile is not None and one.profile.id == association_id]
    if not found or not found[0].is_live:
        raise Ec2Error("InvalidAssociationID.NotFound", f"The association ID '{association_id}' does not exist")
    return found[0]


def _associated(region: Region, instance: Instance, association: ProfileAssociation) -> dict[str, Any]:
    region.change(instance.id, profile=association)
    return {"IamInstanceProfileAssociation": _entry(region.instances[instance.id], "associating")}


def _entry(instance: Instance, state: str) -> dict[str, Any]:
    assert instance.profile is not None
    profile = instance.profile.profile
    return {
        "AssociationId": instance.profile.id,
        "InstanceId": instance.id,
        "IamInstanceProfile": {"Arn": profile.arn, "Id": profile.id},
        "State": state,
    }


OPERATIONS = {
    "AssociateIamInstanceProfile": associate_iam_instance_profile,
    "DescribeIamInstanceProfileAssociations": describe_iam_instance_profile_associations,
    "DisassociateIamInstanceProfile": disassociate_iam_instance_profile,
    "ReplaceIamInstanceProfileAssociation": replace_iam_instance_profile_association,
}
