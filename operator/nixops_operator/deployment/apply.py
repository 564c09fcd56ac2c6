"""Carries out one step of a deployment's plan. No decisions here."""

from __future__ import annotations

from typing import assert_never

from nixops_operator import names
from nixops_operator.deployment import key_pairs, steps
from nixops_operator.deployment.observed import Desired
from nixops_operator.deployment.steps import Step
from nixops_operator.facts.kube import Body, Key, Kind, OwnerReference
from nixops_operator.informers.cloud import CloudInformer
from nixops_operator.world import World

API_VERSION = "nixops.dev/v1alpha1"


async def apply(step: Step, desired: Desired, body: Body, world: World) -> Body:
    """Do it. Returns the newest body, which an intent may have changed. Raises what ports raise."""
    match step:
        case steps.RecordAccount(account_id):
            return await world.kube.write_intent(body, {"accountId": account_id})
        case steps.GenerateKey(entry):
            await world.kube.create_secret(
                desired.key.namespace,
                names.key_pair_secret(desired.key.name, entry),
                {names.SSH_PRIVATE_KEY: key_pairs.generate_private_key()},
                owner=OwnerReference(Kind.DEPLOYMENT, desired.key.name, desired.uid),
                type_=names.SSH_SECRET_TYPE,
                immutable=False,
            )
        case steps.KeepKeys(secrets):
            for secret in secrets:
                await world.kube.disown_secret(desired.key.namespace, secret, desired.uid)
        case steps.CreateMachine(child):
            created = await world.kube.create_machine(
                {
                    "apiVersion": API_VERSION,
                    "kind": Kind.MACHINE.object_kind,
                    "metadata": {
                        "name": child.name,
                        "namespace": desired.key.namespace,
                        "labels": dict(child.labels),
                        "ownerReferences": [
                            {
                                "apiVersion": API_VERSION,
                                "kind": Kind.DEPLOYMENT.object_kind,
                                "name": desired.key.name,
                                "uid": desired.uid,
                                "controller": True,
                                "blockOwnerDeletion": True,
                            }
                        ],
                    },
                    "spec": dict(child.spec),
                }
            )
            _keep(_child_key(desired, child.name), created, world)
        case steps.ReplaceMachineSpec(child):
            known = world.cache.get(_child_key(desired, child.name))
            if known is not None:
                replaced = await world.kube.replace_machine_spec(known, dict(child.spec), child.labels)
                _keep(_child_key(desired, child.name), replaced, world)
        case steps.DeleteMachine(name):
            known = world.cache.get(_child_key(desired, name))
            if known is not None:
                await world.kube.delete_machine(known)
        case _:
            await _apply_in_ec2(step, desired, world)
    return body


async def _apply_in_ec2(
    step: steps.ImportKeyPair
    | steps.DeleteKeyPair
    | steps.CreateGroup
    | steps.AuthorizeRules
    | steps.RevokeRules
    | steps.DescribeRules
    | steps.DeleteGroup
    | steps.Retain,
    desired: Desired,
    world: World,
) -> None:
    look: CloudInformer = await world.look_at_cloud(desired.key, frozenset({desired.uid}), desired.spec.aws)
    cloud = look.cloud
    owner = (world.cluster_id, desired.key.namespace, desired.key.name, desired.uid)
    try:
        match step:
            case steps.ImportKeyPair(entry, name, public_key):
                await cloud.import_key_pair(name, public_key, names.key_pair_tags(*owner, entry, public_key))
            case steps.DeleteKeyPair(name):
                await cloud.delete_key_pair(name)
            case steps.CreateGroup(entry, name, description, vpc_id):
                await cloud.create_security_group(name, description, vpc_id, names.entry_tags(*owner, entry))
            case steps.AuthorizeRules(group_id, direction, rules):
                await cloud.authorize_rules(group_id, direction, dict(rules))
            case steps.RevokeRules(group_id, direction, rule_ids):
                await cloud.revoke_rules(group_id, direction, rule_ids)
            case steps.DescribeRules(group_id, descriptions):
                await cloud.describe_rules(group_id, dict(descriptions))
            case steps.DeleteGroup(group_id):
                await cloud.delete_security_group(group_id)
            case steps.Retain(resource_ids):
                await cloud.create_tags(resource_ids, {names.RETAINED_TAG: "true"})
            case _:
                assert_never(step)
    finally:
        # Also after an error: a call whose reply was lost may have been carried out.
        look.note_write(desired.uid)


def _keep(key: Key, body: Body, world: World) -> None:
    """The reply is newer than the watch; the child's own pass must hear of it all the same."""
    world.cache.put(key, body)
    world.wake(key)


def _child_key(desired: Desired, name: str) -> Key:
    return Key(Kind.MACHINE, desired.key.namespace, name)
