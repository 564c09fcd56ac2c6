"""Key pairs: import, describe, delete.

Facts: EC2 User Guide, "Amazon EC2 key pairs and Amazon EC2 instances" (RSA and ED25519 only) and "Verify the
fingerprint of your key pair".
"""

import base64
import binascii
import hashlib
import struct
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key

from nixops_lab.ec2 import ids, tags
from nixops_lab.ec2.cloud import Cloud
from nixops_lab.ec2.errors import Ec2Error, combination, invalid, missing
from nixops_lab.ec2.filters import select
from nixops_lab.ec2.records import KeyPair
from nixops_lab.ec2.region import Region

MAX_NAME = 255
_TYPES = {"ssh-ed25519": "ed25519", "ssh-rsa": "rsa"}


def key_material(material: bytes) -> tuple[str, bytes]:
    """Type and blob of an OpenSSH public key, its comment dropped. Raises `InvalidKey.Format`."""
    refused = Ec2Error("InvalidKey.Format", "Key is not in valid OpenSSH public key format")
    try:
        name, encoded, *_comment = material.decode().split()
        blob = base64.b64decode(encoded, validate=True)
        (length,) = struct.unpack(">I", blob[:4])
        load_ssh_public_key(f"{name} {encoded}".encode())
    except (ValueError, binascii.Error, struct.error, UnsupportedAlgorithm):
        raise refused from None
    if name not in _TYPES or blob[4 : 4 + length] != name.encode():
        raise refused
    return name, blob


def fingerprint(name: str, blob: bytes) -> str:
    """Base64 of the SHA-256 for ED25519; MD5 of the public key as DER, with colons, for an imported RSA key."""
    if name == "ssh-ed25519":
        return base64.b64encode(hashlib.sha256(blob).digest()).decode()
    key = load_ssh_public_key(f"{name} {base64.b64encode(blob).decode()}".encode())
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.md5(der, usedforsecurity=False).digest().hex(":")


async def import_key_pair(cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """Store the public half under a name that is still free."""
    name = params["KeyName"].strip()
    if not name or len(name) > MAX_NAME or not name.isascii():
        raise invalid(f"Invalid value '{params['KeyName']}' for keyName")
    key_type, blob = key_material(params["PublicKeyMaterial"])
    given = tags.on_create(params, "key-pair").get("key-pair", {})
    if any(pair.name == name for pair in region.key_pairs.values()):
        raise Ec2Error("InvalidKeyPair.Duplicate", f"The keypair '{name}' already exists.")
    pair = KeyPair(
        id=region.new_ids.new("key"),
        name=name,
        key_type=_TYPES[key_type],
        public_key=f"{key_type} {base64.b64encode(blob).decode()}",
        fingerprint=fingerprint(key_type, blob),
        created_at=cloud.panel.clock(),
    )
    region.key_pairs[pair.id] = pair
    region.tags.put(pair.id, given, pair.created_at)
    return {
        "KeyFingerprint": pair.fingerprint,
        "KeyName": pair.name,
        "KeyPairId": pair.id,
        "Tags": tags.as_list(given),
    }


def key_pair_named(region: Region, name: str) -> KeyPair:
    """The visible key pair of this name. Raises `InvalidKeyPair.NotFound`."""
    for pair in region.visible(region.key_pairs).values():
        if pair.name == name:
            return pair
    raise Ec2Error("InvalidKeyPair.NotFound", f"The key pair '{name}' does not exist")


_READERS = {
    "fingerprint": lambda pair: [pair.fingerprint],
    "key-name": lambda pair: [pair.name],
    "key-pair-id": lambda pair: [pair.id],
}


async def describe_key_pairs(_cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """By name, id and filters; the public key only on demand."""
    present = region.visible(region.key_pairs)
    chosen = list(present.values())
    if names := params.get("KeyNames"):
        chosen = [key_pair_named(region, name) for name in names]
    if pair_ids := params.get("KeyPairIds"):
        chosen = ids.pick(ids.KEY_PAIR, pair_ids, present)
    found = select(chosen, params.get("Filters", []), _READERS, lambda record: region.tags_indexed(record.id))
    with_key = params.get("IncludePublicKey", False)
    return {"KeyPairs": [_key_entry(region, pair, with_key) for pair in region.shuffled(found)]}


def _key_entry(region: Region, pair: KeyPair, with_key: bool) -> dict[str, Any]:
    return {
        "KeyPairId": pair.id,
        "KeyName": pair.name,
        "KeyType": pair.key_type,
        "KeyFingerprint": pair.fingerprint,
        "CreateTime": pair.created_at,
        "Tags": tags.as_list(region.tags_shown(pair.id)),
        # EC2 puts the name where the comment was.
        "PublicKey": f"{pair.public_key} {pair.name}" if with_key else None,
    }


async def delete_key_pair(_cloud: Cloud, region: Region, params: dict[str, Any]) -> dict[str, Any]:
    """A missing one is deleted, too: EC2 API Reference, "DeleteKeyPair"."""
    name, pair_id = params.get("KeyName"), params.get("KeyPairId")
    if name and pair_id:
        raise combination("The parameters KeyName and KeyPairId cannot be used together")
    if not name and not pair_id:
        raise missing("KeyName")
    if pair_id:
        ids.well_formed(ids.KEY_PAIR, pair_id)
    gone = [pair for pair in region.key_pairs.values() if pair.id == pair_id or pair.name == name]
    for pair in gone:
        del region.key_pairs[pair.id]
        region.tags.forget(pair.id)
    return {"Return": True, "KeyPairId": gone[0].id if gone else None}


OPERATIONS = {
    "DeleteKeyPair": delete_key_pair,
    "DescribeKeyPairs": describe_key_pairs,
    "ImportKeyPair": import_key_pair,
}
