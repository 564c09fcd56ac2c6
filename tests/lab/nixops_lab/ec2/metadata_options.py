"""Options of the instance metadata service, at launch and later.

Facts: EC2 API Reference, "ModifyInstanceMetadataOptions". That nothing else may be said with `HttpEndpoint` disabled:
terraform-provider-aws, internal/service/ec2/ec2_instance.go.
"""

from collections.abc import Mapping
from typing import Any

from nixops_lab.ec2 import ids, tags
from nixops_lab.ec2.cloud import Cloud
from nixops_lab.ec2.errors import combination, incorrect_state, invalid
from nixops_lab.ec2.instance_entry import metadata_entry
from nixops_lab.ec2.region import Region

DEFAULTS: Mapping[str, object] = {
    "HttpTokens": "required",  # the images say ImdsSupport v2.0
    "HttpPutResponseHopLimit": 2,
    "HttpEndpoint": "enabled",
    "HttpProtocolIpv6": "disabled",
    "InstanceMetadataTags": "disabled",
}
_ALLOWED = {
    "HttpTokens": {"optional", "required"},
    "HttpEndpoint": {"enabled", "disabled"},
    "HttpProtocolIpv6": {"enabled", "disabled"},
    "InstanceMetadataTags": {"enabled", "disabled"},
}


def changed(
    before: Mapping[str, object], wanted: Mapping[str, Any], instance_tags: Mapping[str, str]
) -> dict[str, object]:
    """The options with those that are given; the others stay. Raises where EC2 would not take them."""
    for name, value in wanted.items():
        if name in _ALLOWED and value not in _ALLOWED[name]:
            raise invalid(f"A value of '{value}' is not valid for {name}.")
    if not 1 <= wanted.get("HttpPutResponseHopLimit", 1) <= 64:
        raise invalid("HttpPutResponseHopLimit must be between 1 and 64")
    if wanted.get("HttpEndpoint") == "disabled" and set(wanted) != {"HttpEndpoint"}:
        raise combination("Other metadata options may be specified only when HttpEndpoint is enabled")
    after = {**before, **wanted}
    if after["InstanceMetadataTags"] == "enabled":
        tags.metadata_keys(instance_tags)
    return after


async def modify_instance_metadata_options(cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """Carried out after a while on a running instance."""
    (instance,) = ids.pick(ids.INSTANCE, [params["InstanceId"]], region.visible(region.instances))
    if not instance.is_live:
        raise incorrect_state(f"The instance '{instance.id}' is not in a state from which it can be modified.")
    wanted = {name: params[name] for name in DEFAULTS if name in params}
    options = changed(instance.metadata_options, wanted, region.tags.now(instance.id))
    region.change(instance.id, metadata_options=options, metadata_changed_at=cloud.panel.clock())
    entry = metadata_entry(region, region.instances[instance.id])
    return {"InstanceId": instance.id, "InstanceMetadataOptions": {**entry, "State": "pending"}}


OPERATIONS = {"ModifyInstanceMetadataOptions": modify_instance_metadata_options}
