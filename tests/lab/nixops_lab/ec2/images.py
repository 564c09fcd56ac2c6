"""NixOS images: what is registered, and DescribeImages.

Owner, names and shape: https://nixos.github.io/amis/ (account 427812963091, `nixos/<release>.<…>-<system>`).
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from nixops_lab.ec2 import ids
from nixops_lab.ec2.cloud import Cloud
from nixops_lab.ec2.errors import unsupported
from nixops_lab.ec2.filters import always, page, select
from nixops_lab.ec2.records import Image
from nixops_lab.ec2.region import Region

OWNER = "427812963091"
ROOT_DEVICE = "/dev/xvda"
ROOT_SIZE_GIB = 4

# Release, date of the upload, revision. Several of the current release, so that the newest must be chosen.
_UPLOADS = (
    ("25.05", "20260920", "5c1d2e7"),
    ("25.11", "20261018", "0f3a9b1"),
    ("25.11", "20261025", "77e04c2"),
    ("25.11", "20261101", "abcdef0"),
)
_SYSTEMS = {"x86_64-linux": "x86_64", "aarch64-linux": "arm64"}


def _registered() -> dict[str, Image]:
    images = {}
    for release, date, revision in _UPLOADS:
        for system, architecture in _SYSTEMS.items():
            name = f"nixos/{release}.{date}.{revision}-{system}"
            image_id = f"ami-{hashlib.sha256(name.encode()).hexdigest()[:17]}"
            created = f"{date[:4]}-{date[4:6]}-{date[6:]}T06:00:00.000Z"
            images[image_id] = Image(image_id, name, release, architecture, created)
    return images


# id → image, the same in every region and every lab.
IMAGES: Mapping[str, Image] = _registered()

_READERS: dict[str, Any] = {
    "architecture": lambda i: [i.architecture],
    "creation-date": lambda i: [i.creation_date],
    "image-id": lambda i: [i.id],
    "image-type": always("machine"),
    "is-public": always("true"),
    "name": lambda i: [i.name],
    "owner-id": always(OWNER),
    "root-device-name": always(ROOT_DEVICE),
    "root-device-type": always("ebs"),
    "state": always("available"),
    "virtualization-type": always("hvm"),
    "hypervisor": always("xen"),
    "ena-support": always("true"),
}


def image_of(image_id: str) -> Image:
    """Raises `InvalidAMIID.Malformed` and `InvalidAMIID.NotFound`."""
    return ids.pick(ids.IMAGE, [image_id], IMAGES)[0]


async def describe_images(_cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """By owner, id and filters. Nobody but the NixOS account owns images here."""
    chosen: Iterable[Image] = IMAGES.values()
    if params.get("ImageIds"):
        chosen = ids.pick(ids.IMAGE, params["ImageIds"], IMAGES)
    if params.get("Owners") and OWNER not in params["Owners"]:
        chosen = []
    if params.get("ExecutableUsers"):
        raise unsupported("DescribeImages by ExecutableUsers")
    found = select(chosen, params.get("Filters", []), _READERS, lambda _image: {})
    shown, token = page(found, lambda image: image.id, region.draw, params, "ImageIds")
    return {"Images": [_image_entry(image) for image in shown], "NextToken": token}


def _image_entry(image: Image) -> dict[str, Any]:
    return {
        "ImageId": image.id,
        "Name": image.name,
        "Description": f"NixOS {image.release}",
        "OwnerId": OWNER,
        "ImageLocation": f"{OWNER}/{image.name}",
        "Architecture": image.architecture,
        "CreationDate": image.creation_date,
        "State": "available",
        "Public": True,
        "ImageType": "machine",
        "Hypervisor": "xen",
        "VirtualizationType": "hvm",
        "EnaSupport": True,
        "SriovNetSupport": "simple",
        "BootMode": "legacy-bios" if image.architecture == "x86_64" else "uefi",
        "ImdsSupport": "v2.0",
        "PlatformDetails": "Linux/UNIX",
        "UsageOperation": "RunInstances",
        "RootDeviceName": ROOT_DEVICE,
        "RootDeviceType": "ebs",
        "BlockDeviceMappings": [
            {
                "DeviceName": ROOT_DEVICE,
                "Ebs": {
                    "DeleteOnTermination": True,
                    "Encrypted": False,
                    "SnapshotId": f"snap-{image.id.removeprefix('ami-')}",
                    "VolumeSize": ROOT_SIZE_GIB,
                    "VolumeType": "gp3",
                },
            }
        ],
    }


OPERATIONS = {"DescribeImages": describe_images}
