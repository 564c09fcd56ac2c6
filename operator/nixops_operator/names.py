"""Every name that the operator gives: labels, Secrets, EC2 tags, groups, key pairs, client tokens.

A name is a function of its owner alone, so that a step whose reply was lost finds what it made.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping

FINALIZER = "nixops.dev/finalizer"
DEPLOYMENT_LABEL = "nixops.dev/deployment"
MACHINE_LABEL = "nixops.dev/machine"
"""The machine's name in its deployment (`web-0`), not the object's (`shop-web-0`)."""

PAUSED_ANNOTATION = "nixops.dev/paused"
RECONCILE_ANNOTATION = "nixops.dev/reconcile-requested-at"
FLUX_RECONCILE_ANNOTATION = "reconcile.fluxcd.io/requestedAt"

OPERATOR_NAMESPACE = "nixops-system"
LEASE = "nixops-operator"
SIGNING_KEY_SECRET = "nixops-signing-key"  # noqa: S105 - a name
SSH_SECRET_TYPE = "kubernetes.io/ssh-auth"  # noqa: S105 - a name
SSH_PRIVATE_KEY = "ssh-privatekey"

# Tag keys have neither `/` nor spaces: EC2 refuses those where instance metadata shows tags (EC2 User Guide, "Work with
# instance tags in instance metadata").
CLUSTER_TAG = "nixops.dev:cluster"
UID_TAG = "nixops.dev:uid"
NAMESPACE_TAG = "nixops.dev:namespace"
NAME_TAG = "nixops.dev:name"
ENTRY_TAG = "nixops.dev:entry"
ATTEMPT_TAG = "nixops.dev:attempt"
KEY_DIGEST_TAG = "nixops.dev:key-sha256"
RETAINED_TAG = "nixops.dev:retained"
DISPLAY_NAME_TAG = "Name"


def machine_object_name(deployment: str, machine: str) -> str:
    """Name of the NixMachine of a deployment's machine."""
    return f"{deployment}-{machine}"


def key_pair_secret(deployment: str, entry: str) -> str:
    """Secret with the generated private key of a deployment's key pair."""
    return f"{deployment}-{entry}-ssh"


def host_keys_secret(machine: str) -> str:
    """Secret with the host keys pinned for a machine; `machine` is the object's name, here and below."""
    return f"{machine}-host-keys"


def launch_secret(machine: str, attempt: int) -> str:
    """Immutable Secret with the frozen request of one launch."""
    return f"{machine}-launch-{attempt}"


def machine_name(body: Mapping[str, object]) -> str:
    """What the machine calls itself: its name in its deployment if one controls it, else its object's name."""
    metadata = body["metadata"]
    assert isinstance(metadata, Mapping)  # noqa: S101 - every Kubernetes object has it
    is_child = any(owner.get("controller") for owner in metadata.get("ownerReferences", ()))
    label = metadata.get("labels", {}).get(MACHINE_LABEL) if is_child else None
    return str(label or metadata["name"])


def _hex(text: str, digits: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def security_group_name(cluster_id: str, owner_uid: str, entry: str, vpc_id: str, description: str) -> str:
    """EC2 name of a deployment's group. VPC and description, which EC2 cannot change, are part of it: another
    description is another group."""
    return f"nixops-{_hex(f'{cluster_id}/{owner_uid}', 12)}-{entry}-{_hex(f'{vpc_id}/{description}', 6)}"


def key_pair_name(cluster_id: str, owner_uid: str, entry: str, public_key: str) -> str:
    """EC2 name of a deployment's key pair; another public key (`<type> <base64>`) is another key pair."""
    return f"nixops-{_hex(f'{cluster_id}/{owner_uid}', 12)}-{entry}-{key_digest(public_key)[:8]}"


def key_digest(public_key: str) -> str:
    """sha256 of the key blob of `<type> <base64>[ comment]`, in hex."""
    return hashlib.sha256(base64.b64decode(public_key.split()[1])).hexdigest()


def client_token(cluster_id: str, uid: str, attempt: int) -> str:
    """RunInstances' ClientToken, 51 of the 64 characters that EC2 takes. The parameters are no part of it: a token that
    followed them would start a second machine where EC2 now answers `IdempotentParameterMismatch`."""
    digest = hashlib.sha256(f"{cluster_id}|{uid}|{attempt}".encode()).digest()
    return "n1-" + base64.b32encode(digest).decode().lower()[:48]


def owner_tags(cluster_id: str, namespace: str, name: str, uid: str) -> dict[str, str]:
    """Tags of everything made for one object. Cluster and uid are what things are found by; the rest is for people and
    IAM policies."""
    return {
        CLUSTER_TAG: cluster_id,
        UID_TAG: uid,
        NAMESPACE_TAG: namespace,
        NAME_TAG: name,
        DISPLAY_NAME_TAG: f"{namespace}/{name}",
    }


def instance_tags(
    cluster_id: str, namespace: str, name: str, uid: str, attempt: int, user_tags: Mapping[str, str]
) -> dict[str, str]:
    """Tags of an instance and its volumes; of ours, users may override `Name` alone."""
    own = owner_tags(cluster_id, namespace, name, uid) | {ATTEMPT_TAG: str(attempt)}
    return {DISPLAY_NAME_TAG: own.pop(DISPLAY_NAME_TAG), **user_tags, **own}


def entry_tags(cluster_id: str, namespace: str, deployment: str, uid: str, entry: str) -> dict[str, str]:
    """Tags of a deployment's security group or key pair; `uid` is the deployment's."""
    return owner_tags(cluster_id, namespace, f"{deployment}/{entry}", uid) | {ENTRY_TAG: entry}


def key_pair_tags(
    cluster_id: str, namespace: str, deployment: str, uid: str, entry: str, public_key: str
) -> dict[str, str]:
    """Tags of a deployment's key pair."""
    return entry_tags(cluster_id, namespace, deployment, uid, entry) | {KEY_DIGEST_TAG: key_digest(public_key)}
