"""What burstable instances do without CPU credits.

Facts: EC2 API Reference, "DescribeInstanceCreditSpecifications", "ModifyInstanceCreditSpecification"; EC2 User Guide,
"Key concepts for burstable performance instances": T2 begins with `standard`, the later ones with `unlimited`.
"""

from collections.abc import Mapping
from typing import Any

from nixops_lab.ec2 import ids
from nixops_lab.ec2.cloud import Cloud
from nixops_lab.ec2.errors import Ec2Error, combination, incorrect_state, invalid
from nixops_lab.ec2.records import Instance
from nixops_lab.ec2.region import Region

_OPTIONS = {"standard", "unlimited"}


def is_burstable(instance_type: str) -> bool:
    """T2, T3, T3a, T4g."""
    return instance_type.partition(".")[0] in {"t2", "t3", "t3a", "t4g"}


def at_launch(instance_type: str, wanted: Mapping[str, str] | None) -> str | None:
    """The option that an instance is launched with; None where there is none. Raises where EC2 would not launch it."""
    if not is_burstable(instance_type):
        if wanted:
            raise combination(f"The parameter CreditSpecification is not supported for {instance_type}")
        return None
    option = (wanted or {}).get("CpuCredits", "standard" if instance_type.startswith("t2.") else "unlimited")
    return _judged(option)


def _judged(option: str) -> str:
    if option not in _OPTIONS:
        raise invalid(f"Invalid value '{option}' for CpuCredits.")
    return option


async def describe_instance_credit_specifications(
    _cloud: Cloud, region: Region, params: dict[str, Any]
) -> dict[str, Any]:
    """Of the instances that are named; else of those with `unlimited`."""
    present = region.visible(region.instances)
    if wanted := params.get("InstanceIds"):
        if "MaxResults" in params:
            raise combination("The parameter instancesSet cannot be used with the parameter maxResults")
        found = ids.pick(ids.INSTANCE, wanted, present)
        for instance in found:
            if instance.credits is None:
                raise _not_supported(instance.id)
    else:
        found = [instance for instance in present.values() if instance.credits == "unlimited"]
    shown, token = region.paged(found, params, "InstanceIds")
    entries = [{"InstanceId": one.id, "CpuCredits": one.credits} for one in shown]
    return {"InstanceCreditSpecifications": entries, "NextToken": token}


async def modify_instance_credit_specification(_cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """Each instance for itself; the call succeeds as a whole."""
    done, refused = [], []
    for wanted in params["InstanceCreditSpecifications"]:
        try:
            instance = _changeable(region, wanted["InstanceId"])
            region.change(instance.id, credits=_judged(wanted.get("CpuCredits", "")))
            done.append({"InstanceId": instance.id})
        except Ec2Error as error:
            told = {"Code": error.code, "Message": error.message}
            refused.append({"InstanceId": wanted["InstanceId"], "Error": told})
    return {
        "SuccessfulInstanceCreditSpecifications": done,
        "UnsuccessfulInstanceCreditSpecifications": refused,
    }


def _changeable(region: Region, instance_id: str) -> Instance:
    (instance,) = ids.pick(ids.INSTANCE, [instance_id], region.visible(region.instances))
    if instance.credits is None:
        raise _not_supported(instance.id)
    if instance.state not in {"running", "stopped"}:
        raise incorrect_state(f"The instance '{instance.id}' is not in the 'running' or 'stopped' states.")
    return instance


def _not_supported(instance_id: str) -> Ec2Error:
    text = f"The instance '{instance_id}' is of no burstable type"
    return Ec2Error("InstanceCreditSpecification.NotSupported", text)


OPERATIONS = {
    "DescribeInstanceCreditSpecifications": describe_instance_credit_specifications,
    "ModifyInstanceCreditSpecification": modify_instance_credit_specification,
}
