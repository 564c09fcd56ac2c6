"""Tags: on create, later, and away again.

Facts: EC2 User Guide, "Tag your Amazon EC2 resources"; EC2 API Reference, "CreateTags", "DeleteTags".
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nixops_lab.ec2 import ids
from nixops_lab.ec2.cloud import Cloud
from nixops_lab.ec2.errors import Ec2Error, invalid, missing
from nixops_lab.ec2.filters import page, select
from nixops_lab.ec2.region import Region

# EC2 API Reference, "Tag".
MAX_TAGS = 50
MAX_KEY = 127
MAX_VALUE = 256
# Of the instance metadata service: EC2 User Guide, "View tags for your EC2 instances using instance metadata".
_METADATA_KEY = re.compile(r"[0-9a-zA-Z\-_+=,.@:]{1,255}")


def checked(tags: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """key → value. Raises on keys that EC2 keeps for itself, on doubled and on over-long ones."""
    result: dict[str, str] = {}
    for tag in tags:
        key, value = tag.get("Key"), tag.get("Value", "")
        if not key:
            raise missing("Tag.Key")
        if key.lower().startswith("aws:"):
            raise invalid("Tag keys starting with 'aws:' are reserved for internal use")
        if len(key) > MAX_KEY or len(value) > MAX_VALUE:
            raise invalid(f"Tag key exceeds the maximum length of {MAX_KEY} or its value that of {MAX_VALUE}")
        if key in result:
            raise invalid(f"Duplicate tag key '{key}' specified.")
        result[key] = value
    if len(result) > MAX_TAGS:
        raise Ec2Error("TagLimitExceeded", f"You have reached the maximum of {MAX_TAGS} tags")
    return result


def on_create(params: Mapping[str, Any], *allowed: str) -> dict[str, dict[str, str]]:
    """Resource type → tags, from `TagSpecifications`; other types than `allowed` are refused."""
    result: dict[str, dict[str, str]] = {}
    for specification in params.get("TagSpecifications", []):
        resource_type = specification.get("ResourceType")
        if resource_type not in allowed:
            raise invalid(f"'{resource_type}' is not a valid taggable resource type for this operation.")
        if resource_type in result:
            raise invalid(f"The same resource type '{resource_type}' may not be specified more than once")
        result[resource_type] = checked(specification.get("Tags", []))
    return result


def metadata_keys(tags: Mapping[str, str]) -> None:
    """With tags in the instance metadata, keys are parts of paths. Raises `InvalidParameterValue`."""
    for key in tags:
        if not _METADATA_KEY.fullmatch(key) or key in {".", "..", "_index"}:
            raise invalid(
                f"'{key}' is not a valid tag key. Tag keys must match pattern ([0-9a-zA-Z\\-_+=,.@:]{{1,255}}), "
                "and must not be a reserved name ('.', '..', '_index')"
            )


def as_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """The `Tags` of a reply."""
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def _present(region: Region, resource: str) -> str:
    """The id, if it exists. Raises the `.NotFound` of its kind, `InvalidID` where there is none such."""
    kind = next((kind for kind in ids.TAGGABLE if resource.startswith(f"{kind.prefix}-")), None)
    if kind is None:
        raise Ec2Error("InvalidID", f"The ID '{resource}' is not valid")
    ids.well_formed(kind, resource)
    records: dict[ids.Kind, Mapping[str, object]] = {
        ids.INSTANCE: region.visible(region.instances),
        ids.GROUP: region.visible(region.groups),
        ids.RULE: region.visible(region.rules),
        ids.KEY_PAIR: region.visible(region.key_pairs),
        ids.INTERFACE: region.visible(region.interfaces),
        ids.VOLUME: region.visible(region.volumes),
        ids.SNAPSHOT: region.visible(region.snapshots),
        ids.ADDRESS: region.visible(region.addresses),
    }
    if resource not in records[kind]:
        raise ids.absent(kind, resource)
    return resource


async def create_tags(cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """All resources or none."""
    added = checked(params["Tags"])
    resources = [_present(region, resource) for resource in params["Resources"]]
    for resource in resources:
        if len({**region.tags.now(resource), **added}) > MAX_TAGS:
            raise Ec2Error("TagLimitExceeded", f"You have reached the maximum of {MAX_TAGS} tags")
        instance = region.instances.get(resource)
        if instance is not None and instance.metadata_options["InstanceMetadataTags"] == "enabled":
            metadata_keys(added)
    for resource in resources:
        region.tags.put(resource, {**region.tags.now(resource), **added}, cloud.panel.clock())
    return {}


async def delete_tags(cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """By key, or by key and value. Without any tag named, all tags of the resources go."""
    resources = [_present(region, resource) for resource in params["Resources"]]
    for resource in resources:
        left = dict(region.tags.now(resource)) if params.get("Tags") else {}
        for tag in params.get("Tags", []):
            key = tag.get("Key", "")
            if key in left and tag.get("Value", left[key]) == left[key]:
                del left[key]
        region.tags.put(resource, left, cloud.panel.clock())
    return {}


class _Tag:
    def __init__(self, resource: str, key: str, value: str) -> None:
        self.resource, self.key, self.value = resource, key, value
        kind = next(kind for kind in ids.TAGGABLE if resource.startswith(f"{kind.prefix}-"))
        self.resource_type = kind.resource_type


_READERS = {
    "key": lambda tag: [tag.key],
    "resource-id": lambda tag: [tag.resource],
    "resource-type": lambda tag: [tag.resource_type],
    "value": lambda tag: [tag.value],
}


async def describe_tags(_cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """Every tag of every resource, filtered."""
    every = [
        _Tag(resource, key, value) for resource in region.tags for key, value in region.tags_indexed(resource).items()
    ]
    found = select(every, params.get("Filters", []), _READERS, lambda tag: {tag.key: tag.value})
    shown, token = page(found, lambda tag: f"{tag.resource} {tag.key}", region.draw, params, "Resources")
    entries = [
        {"ResourceId": tag.resource, "ResourceType": tag.resource_type, "Key": tag.key, "Value": tag.value}
        for tag in shown
    ]
    return {"Tags": entries, "NextToken": token}


OPERATIONS = {"CreateTags": create_tags, "DeleteTags": delete_tags, "DescribeTags": describe_tags}
