"""Every name that the operator gives: labels, Secrets, EC2 tags, groups, key pairs, client tokens; and what its tags
say when they are read again.

A name is a function of its owner alone, so that a step whose reply was lost finds what it made. Two owners never give
one name: parts are joined by a dash, which they may hold themselves, so a hash of both follows wherever more than one
pair could be meant.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from typing import Any

from nixops_operator.facts.kube import Kind, controller_of

FINALIZER = "nixops.dev/finalizer"
IN_USE_FINALIZER = "nixops.dev/in-use"
"""On Secrets that a machine needs for its teardown: a namespace that is deleted loses its Secrets before its machines
have gone."""

DEPLOYMENT_LABEL = "nixops.dev/deployment"
MACHINE_LABEL = "nixops.dev/machine"
"""The machine's name in its deployment (`web-0`), not the object's (`shop-web-0`)."""

PAUSED_ANNOTATION = "nixops.dev/paused"
RECONCILE_ANNOTATION = "nixops.dev/reconcile-requested-at"
REBOOT_ANNOTATION = "nixops.dev/reboot-requested-at"
FLUX_RECONCILE_ANNOTATION = "reconcile.fluxcd.io/requestedAt"
ALLOW_DELETION_ANNOTATION = "nixops.dev/allow-deletion"
"""Read by the chart's deletion protection, not by the operator."""
APPLIED_LABELS_ANNOTATION = "nixops.dev/applied-labels"
"""Of a machine: keys of the labels that its deployment gave it. One that the deployment no longer names is taken off;
labels of others stay."""

SIGNING_KEY_SECRET = "nixops-signing-key"  # noqa: S105 - a name
DIGEST_KEY_SECRET = "nixops-digest-key"  # noqa: S105 - a name
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


NAME_LIMIT = 253
"""Characters of an object's name (Kubernetes, "Object Names and IDs")."""
LABEL_LIMIT = 63
"""Characters of a label's value (Kubernetes, "Labels and Selectors")."""
TAG_LIMIT = 256
"""Characters of a tag's value (EC2 User Guide, "Tag restrictions"); a namespace and a name may be longer together."""

_HASH_DIGITS = 6
_LOOKS_HASHED = re.compile(rf"(.*-)?[0-9a-f]{{{_HASH_DIGITS}}}", re.DOTALL)
_ONE_SPLIT = re.compile(r"(?![0-9]+(-|$))[^-]+(-[0-9]+)?", re.DOTALL)
"""A word, and perhaps the number of a replica. Behind `<anything>-`, only one split leaves such a machine."""


def machine_object_name(deployment: str, machine: str) -> str:
    """Name of the NixMachine of a deployment's machine: `<deployment>-<machine>` for `web` and `web-0`, and with a hash
    behind it for a machine like `web-front`, which could be `front` of another deployment `<deployment>-web`."""
    is_plain = _ONE_SPLIT.fullmatch(machine) and not _LOOKS_HASHED.fullmatch(machine)
    return _joined(deployment, machine, is_plain=bool(is_plain))


def key_pair_secret(deployment: str, entry: str) -> str:
    """Secret with the generated private key of a deployment's key pair: `<deployment>-<entry>-ssh`, and with a hash
    before `-ssh` where the deployment's name holds a dash."""
    is_plain = "-" not in deployment and not _LOOKS_HASHED.fullmatch(entry)
    return _joined(deployment, entry, is_plain=is_plain, end="-ssh")


def _joined(first: str, second: str, *, is_plain: bool, end: str = "") -> str:
    name = f"{first}-{second}"
    if is_plain and len(name + end) <= NAME_LIMIT:
        return name + end
    # No name of an object holds a slash. What looks hashed is never joined plainly, so that the two never meet.
    return _with_hash(name, f"{first}/{second}", NAME_LIMIT - len(end)) + end


def _with_hash(text: str, of: str, limit: int) -> str:
    """`<text>-<hash>`, the text cut where that would be too long; it ends as names and labels must."""
    return f"{text[: limit - _HASH_DIGITS - 1].rstrip('-._')}-{_hex(of, _HASH_DIGITS)}"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else _with_hash(text, text, limit)


def label_value(name: str) -> str:
    """An object's name as a label's value, which is shorter: what is too long is cut, with a hash behind it."""
    return _cut(name, LABEL_LIMIT)


def host_keys_secret(machine: str) -> str:
    """Secret with the host keys pinned for a machine; `machine` is the object's name, here and below."""
    return _of_machine(machine, "-host-keys")


def launch_secret(machine: str, attempt: int) -> str:
    """Immutable Secret with the frozen request of one launch."""
    return _of_machine(machine, f"-launch-{attempt}")


def _of_machine(machine: str, end: str) -> str:
    return _cut(machine, NAME_LIMIT - len(end)) + end


def machine_name(body: Mapping[str, Any]) -> str:
    """What the machine calls itself: its name in its deployment if one controls it, else its object's name."""
    metadata = body["metadata"]
    owner = controller_of(body)
    is_child = owner is not None and owner.kind is Kind.DEPLOYMENT
    label = (metadata.get("labels") or {}).get(MACHINE_LABEL) if is_child else None
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


def entry_of_key_pair(name: str) -> str:
    """The entry in what `key_pair_name` gave."""
    return name.split("-", 2)[2].rpartition("-")[0]


def key_digest(public_key: str) -> str:
    """sha256 of the key blob of `<type> <base64>[ comment]`, in hex."""
    return hashlib.sha256(base64.b64decode(public_key.split()[1])).hexdigest()


def client_token(cluster_id: str, uid: str, attempt: int) -> str:
    """RunInstances' ClientToken, 51 of the 64 characters that EC2 takes. The parameters are no part of it: a token that
    followed them would start a second machine where EC2 now answers `IdempotentParameterMismatch`."""
    digest = hashlib.sha256(f"{cluster_id}|{uid}|{attempt}".encode()).digest()
    return "n1-" + base64.b32encode(digest).decode().lower()[:48]


def volume_token(cluster_id: str, uid: str, entry: str, attempt: int) -> str:
    """ClientToken of the CreateVolume of a machine's volume; as `client_token`."""
    digest = hashlib.sha256(f"{cluster_id}|{uid}|{entry}|{attempt}".encode()).digest()
    return "v1-" + base64.b32encode(digest).decode().lower()[:48]


def owner_tags(cluster_id: str, namespace: str, name: str, uid: str) -> dict[str, str]:
    """Tags of everything made for one object. Cluster and uid are what things are found by; the rest is for people and
    IAM policies."""
    return {
        CLUSTER_TAG: cluster_id,
        UID_TAG: uid,
        NAMESPACE_TAG: namespace,
        NAME_TAG: _cut(name, TAG_LIMIT),
        DISPLAY_NAME_TAG: _cut(f"{namespace}/{name}", TAG_LIMIT),
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


def is_ours(tags: Mapping[str, str], cluster_id: str, uid: str) -> bool:
    """Whether tags say that the object of that uid, in that cluster, made the thing."""
    return tags.get(CLUSTER_TAG) == cluster_id and tags.get(UID_TAG) == uid


def owner_and_entry(tags: Mapping[str, str]) -> str:
    """`<uid>/<entry>`: what a thing's absence is counted by while its id is not known."""
    return f"{tags.get(UID_TAG, '')}/{tags.get(ENTRY_TAG, '')}"


def attempt_of(tags: Mapping[str, str]) -> int:
    """The launch that made an instance; 0 where the tag is missing or holds nothing that we write. Whoever may tag the
    instance may have changed it."""
    text = tags.get(ATTEMPT_TAG, "")
    return int(text) if _ATTEMPT.fullmatch(text) else 0


_ATTEMPT = re.compile(r"[1-9][0-9]{0,8}")


def is_retained(tags: Mapping[str, str]) -> bool:
    """Whether a thing was let go of for good: `true`, as Retain writes it, in any case of letters."""
    return tags.get(RETAINED_TAG, "").lower() == "true"
