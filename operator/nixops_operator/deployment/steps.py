"""What a pass over a deployment may do, as values; each is one short effect."""

from __future__ import annotations

from dataclasses import dataclass

from nixops_operator import retain
from nixops_operator.api.machine_of_deployment import ChildMachine
from nixops_operator.ec2.rules import Direction, Rule


@dataclass(frozen=True)
class RecordAccount:
    """Write down the account before anything is made in it."""

    account_id: str


@dataclass(frozen=True)
class GenerateKey:
    """A new Ed25519 key into its Secret, before EC2 hears of it: a lost reply must not lose the private half."""

    entry: str


@dataclass(frozen=True)
class KeepKeys:
    """Let Secrets with generated keys stay when the deployment goes: what is retained is reached by no other key."""

    secrets: tuple[str, ...]


@dataclass(frozen=True)
class ImportKeyPair:
    entry: str
    name: str
    public_key: str


@dataclass(frozen=True)
class DeleteKeyPair:
    name: str


@dataclass(frozen=True)
class CreateGroup:
    entry: str
    name: str
    description: str
    vpc_id: str


@dataclass(frozen=True)
class AuthorizeRules:
    group_id: str
    direction: Direction
    rules: tuple[tuple[Rule, str], ...]  # rule, description


@dataclass(frozen=True)
class RevokeRules:
    group_id: str
    direction: Direction
    rule_ids: tuple[str, ...]


@dataclass(frozen=True)
class DescribeRules:
    group_id: str
    descriptions: tuple[tuple[str, str], ...]  # rule id, text


@dataclass(frozen=True)
class DeleteGroup:
    group_id: str


@dataclass(frozen=True)
class Retain:
    """Tag resources as let go; they are not ours any more."""

    resource_ids: tuple[str, ...]

    blocked_hold = retain.LOOK_AGAIN


@dataclass(frozen=True)
class CreateMachine:
    child: ChildMachine


@dataclass(frozen=True)
class ReplaceMachineSpec:
    child: ChildMachine


@dataclass(frozen=True)
class DeleteMachine:
    name: str


Step = (
    RecordAccount
    | GenerateKey
    | KeepKeys
    | ImportKeyPair
    | DeleteKeyPair
    | CreateGroup
    | AuthorizeRules
    | RevokeRules
    | DescribeRules
    | DeleteGroup
    | Retain
    | CreateMachine
    | ReplaceMachineSpec
    | DeleteMachine
)
