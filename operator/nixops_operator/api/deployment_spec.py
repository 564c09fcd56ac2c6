"""`spec` of a NixDeployment: machines that belong together, with the key pairs and security groups they share."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Self

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, WithJsonSchema, model_validator

from nixops_operator.api.field_types import (
    IN_ORDER,
    MERGED_BY_NAME,
    SET,
    FreeText,
    GroupName,
    Label,
    SpecModel,
    cel_rules,
    no_secret_in,
)
from nixops_operator.api.machine_spec import (
    AwsSettings,
    DeletionPolicy,
    DriftPolicy,
    PrivateKeyReference,
    SshSettings,
)


class KeyPairEntry(SpecModel):
    """An EC2 key pair of this deployment."""

    name: Label
    """Name in this deployment; EC2's own name is derived from it."""
    private_key_secret_ref: PrivateKeyReference | None = None
    """The private key. Absent: an Ed25519 key is generated into the Secret <deployment>-<name>-ssh, or
    <deployment>-<name>-<hash>-ssh where the deployment's name holds a dash."""


_PEER = "a rule names at least one of cidrs, ipv6Cidrs, prefixLists, groups and self"
_ICMP_FIELDS = "icmpType and icmpCode go with protocol icmp or icmpv6 only, fromPort and toPort with the others only"
_PORTS = "tcp and udp need fromPort and toPort, with fromPort not above toPort"

_NO_NETWORK = "is no address and no network; write it as 10.0.0.0/8 or 2001:db8::/32"


def _network(text: str) -> str:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(_NO_NETWORK) from None
    return text


_IS_NETWORK = cel_rules(("isCIDR(self) || isIP(self)", _NO_NETWORK))
Ipv4Network = Annotated[
    str,
    StringConstraints(max_length=18, pattern=r"^[0-9]+(\.[0-9]+){3}(/[0-9]{1,2})?$"),
    AfterValidator(_network),
    Field(json_schema_extra=_IS_NETWORK),
]
Ipv6Network = Annotated[
    str,
    StringConstraints(max_length=43, pattern="^[0-9a-fA-F:]+(/[0-9]{1,3})?$"),
    AfterValidator(_network),
    Field(json_schema_extra=_IS_NETWORK),
]
Port = Annotated[int, Field(ge=0, le=65535)]
IcmpNumber = Annotated[int, Field(ge=-1, le=255)]


# With leading zeros, too: canonical_protocol (ec2/rules.py) takes them for what they mean.
_ICMP = ["icmp", "icmpv6", "1", "01", "001", "58", "058"]
_WITH_PORTS = ["tcp", "udp", "6", "06", "006", "17", "017"]
_PROTOCOL_NUMBER = "(0?[0-9]{1,2}|1[0-9]{2}|2[0-4][0-9]|25[0-5])"


class SecurityGroupRule(SpecModel):
    """Traffic that is let through, between the group's members and every peer named here."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            (
                (
                    "[has(self.cidrs) && size(self.cidrs) > 0, has(self.ipv6Cidrs) && size(self.ipv6Cidrs) > 0,"
                    " has(self.prefixLists) && size(self.prefixLists) > 0, has(self.groups) && size(self.groups) > 0,"
                    " has(self.self) && self.self].exists(x, x)"
                ),
                _PEER,
            ),
            (
                (
                    f"has(self.protocol) && self.protocol in {_ICMP}"
                    " ? !has(self.fromPort) && !has(self.toPort) : !has(self.icmpType) && !has(self.icmpCode)"
                ),
                _ICMP_FIELDS,
            ),
            (
                (
                    f"has(self.protocol) && !(self.protocol in {_WITH_PORTS})"
                    " || has(self.fromPort) && has(self.toPort) && self.fromPort <= self.toPort"
                ),
                _PORTS,
            ),
        )
    )

    protocol: Annotated[
        str, StringConstraints(max_length=8, pattern=f"^(tcp|udp|icmp|icmpv6|all|-1|{_PROTOCOL_NUMBER})$")
    ] = "tcp"
    """tcp, udp, icmp, icmpv6, all, or an IP protocol number."""
    from_port: Port | None = None
    """First port (tcp, udp)."""
    to_port: Port | None = None
    """Last port (tcp, udp)."""
    icmp_type: IcmpNumber | None = None
    """ICMP type; absent or -1: all types and codes."""
    icmp_code: IcmpNumber | None = None
    """ICMP code; absent or -1: all codes of the type."""
    cidrs: Annotated[tuple[Ipv4Network, ...], Field(max_length=60, json_schema_extra=SET)] = ()
    """IPv4 networks, as 10.0.0.0/8."""
    ipv6_cidrs: Annotated[tuple[Ipv6Network, ...], Field(max_length=60, json_schema_extra=SET)] = ()
    """IPv6 networks, as 2001:db8::/32."""
    prefix_lists: Annotated[
        tuple[Annotated[str, StringConstraints(max_length=32, pattern="^pl-[0-9a-f]{8,17}$")], ...],
        Field(max_length=60, json_schema_extra=SET),
    ] = ()
    """Ids of managed prefix lists."""
    groups: Annotated[tuple[Label, ...], Field(max_length=16, json_schema_extra=SET)] = ()
    """Other groups: names of this deployment's securityGroups, or ids sg-…"""
    include_self: bool = Field(default=False, alias="self")
    """Whether the group's own members are a peer."""
    # The characters that EC2 takes: EC2 API Reference, "IpRange", Description.
    description: Annotated[
        str, StringConstraints(max_length=255, pattern=r"^[a-zA-Z0-9 ._\-:/()#,@\[\]+=&;{}!$*]*$")
    ] = ""
    """For people; shown by EC2 beside each rule."""

    @model_validator(mode="after")
    def _as_ec2_takes_it(self) -> Self:
        if not (self.cidrs or self.ipv6_cidrs or self.prefix_lists or self.groups or self.include_self):
            raise ValueError(_PEER)
        is_icmp = self.protocol in _ICMP
        ports, kinds = (self.from_port, self.to_port), (self.icmp_type, self.icmp_code)
        if (ports if is_icmp else kinds) != (None, None):
            raise ValueError(_ICMP_FIELDS)
        if self.protocol in _WITH_PORTS and (
            self.from_port is None or self.to_port is None or self.from_port > self.to_port
        ):
            raise ValueError(_PORTS)
        return self


class SecurityGroupEntry(SpecModel):
    """A security group of this deployment."""

    name: GroupName
    """Name in this deployment; EC2's own name is derived from it."""
    # The characters that EC2 takes: EC2 API Reference, "CreateSecurityGroup", GroupDescription.
    description: Annotated[
        str,
        StringConstraints(min_length=1, max_length=255, pattern=r"^[a-zA-Z0-9 ._\-:/()#,@\[\]+=&;{}!$*]+$"),
    ]
    """For people; shown by EC2. A change makes a new group, as EC2 cannot change it."""
    vpc_id: Annotated[str, StringConstraints(max_length=32, pattern="^vpc-[0-9a-f]{8,17}$")] | None = None
    """Absent: the region's default VPC. A change makes a new group."""
    ingress: Annotated[tuple[SecurityGroupRule, ...], Field(max_length=60, json_schema_extra=IN_ORDER)] = ()
    """What may come in."""
    egress: Annotated[tuple[SecurityGroupRule, ...], Field(max_length=60, json_schema_extra=IN_ORDER)] | None = None
    """What may go out. Absent: everything, as EC2's own default; empty: nothing."""


_OUR_LABELS = "labels nixops.dev/… belong to the operator"


# Kubernetes documentation, "Labels and Selectors", "Syntax and character set": the API server would refuse the machine.
_LABEL_KEYS = "keys of labels are names of at most 63 letters, digits, - _ and ., perhaps after a domain and /"
_DOMAIN = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_LABEL_NAME = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_LABEL_KEY = rf"^({_DOMAIN}(\.{_DOMAIN})*/)?{_LABEL_NAME}$"


def _proper_labels(labels: dict[str, str]) -> dict[str, str]:
    if any(key.startswith("nixops.dev/") for key in labels):
        raise ValueError(_OUR_LABELS)
    if not all(len(key) <= 317 and re.search(_LABEL_KEY, key) for key in labels):
        raise ValueError(_LABEL_KEYS)
    return labels


class MachineEntry(SpecModel):
    """One machine, or several of one kind. Beside these fields stand those of a NixMachine's spec, all optional."""

    # The others are judged after the deployment's defaults were merged in, as a NixMachine's spec.
    model_config = ConfigDict(extra="allow")

    name: Label
    """Name of the machine in this deployment, and its host name. The NixMachine is called <deployment>-<name>, with a
    short hash behind it where the name holds a dash or is a number."""
    replicas: Annotated[int, Field(ge=0, le=256)] | None = None
    """How many, named <name>-0, <name>-1, …; absent: one, named <name>."""
    labels: Annotated[
        dict[str, Annotated[str, StringConstraints(max_length=63, pattern=f"^({_LABEL_NAME})?$")]],
        Field(max_length=32),
        AfterValidator(_proper_labels),
        Field(
            json_schema_extra=cel_rules(
                ("self.all(key, !key.startsWith('nixops.dev/'))", _OUR_LABELS),
                (f"self.all(key, size(key) <= 317 && key.matches(r'{_LABEL_KEY}'))", _LABEL_KEYS),
            )
        ),
    ] = Field(default_factory=dict)
    """Labels of the NixMachine, besides the operator's own."""

    @property
    def count(self) -> int:
        """How many machines this is."""
        return 1 if self.replicas is None else self.replicas

    @property
    def settings(self) -> dict[str, Any]:
        """The fields of a NixMachine's spec, camelCase, as written."""
        return dict(self.model_extra or {})


_KNOWN_GROUP = "is none of securityGroups; add it there, or name an existing group by its id sg-…"
_MACHINE_GROUPS = f"a machine's target.ec2.securityGroups: one of them {_KNOWN_GROUP}"
_RULE_GROUPS = f"groups of a rule: one of them {_KNOWN_GROUP}"
_KEY_PAIR = (
    "target.ec2.keyPair is none of keyPairs; add it there, or name the Secret with its private key in"
    " ssh.privateKeySecretRef"
)
_UNIQUE = "a machine has the name of another one's replica; rename one"
MACHINES_LIMIT = 256
_TOO_MANY = f"more than {MACHINES_LIMIT} machines, all replicas counted; spread them over several NixDeployments"

_IS_KNOWN = "(group.startsWith('sg-') || has(self.securityGroups) && self.securityGroups.exists(g, g.name == group))"
_HAS_CLIENT_KEY = "has({0}.ssh) && has({0}.ssh.privateKeySecretRef)"
_IS_REPLICA = (
    "!has(one.replicas) && one.name.startsWith(many.name + '-')"
    " && one.name.substring(size(many.name) + 1).matches('^[0-9]+$')"
)


def _groups_of(owner: str) -> str:
    return (
        f"!has({owner}.target) || !has({owner}.target.ec2) || !has({owner}.target.ec2.securityGroups)"
        f" || {owner}.target.ec2.securityGroups.all(group, {_IS_KNOWN})"
    )


def _key_pair_of(owner: str) -> str:
    return (
        f"!has({owner}.target) || !has({owner}.target.ec2) || !has({owner}.target.ec2.keyPair)"
        f" || has(self.keyPairs) && self.keyPairs.exists(pair, pair.name == {owner}.target.ec2.keyPair)"
        f" || {_HAS_CLIENT_KEY.format(owner)}"
    )


def _groups_of_rules(direction: str) -> str:
    return (
        "!has(self.securityGroups) || [self.securityGroups.map(group, group.name)].all(known,"
        f" self.securityGroups.all(owner, !has(owner.{direction}) || owner.{direction}.all(rule, !has(rule.groups)"
        " || rule.groups.all(group, group.startsWith('sg-') || group in known))))"
    )


class NixDeploymentSpec(SpecModel):
    """NixOS machines that belong together, with the key pairs and security groups they share."""

    model_config = ConfigDict(
        json_schema_extra=cel_rules(
            (f"!has(self.machines) || self.machines.all(machine, {_groups_of('machine')})", _MACHINE_GROUPS),
            (f"!has(self.defaults) || {_groups_of('self.defaults')}", _MACHINE_GROUPS),
            (
                (
                    "!has(self.machines)"
                    f" || {_HAS_CLIENT_KEY.format('self')}"
                    f" || has(self.defaults) && {_HAS_CLIENT_KEY.format('self.defaults')}"
                    f" || self.machines.all(machine, {_key_pair_of('machine')})"
                ),
                _KEY_PAIR,
            ),
            (_groups_of_rules("ingress"), _RULE_GROUPS),
            (_groups_of_rules("egress"), _RULE_GROUPS),
            (
                (
                    "!has(self.machines) || self.machines.all(many, !has(many.replicas)"
                    f" || !self.machines.exists(one, {_IS_REPLICA}))"
                ),
                _UNIQUE,
            ),
            (
                (
                    "!has(self.machines) || self.machines.map(machine, has(machine.replicas) ? machine.replicas : 1)"
                    f".sum() <= {MACHINES_LIMIT}"
                ),
                _TOO_MANY,
            ),
            *no_secret_in("description"),
        )
    )

    description: Annotated[FreeText, StringConstraints(max_length=255)] = ""
    """For people."""
    suspend: bool = False
    """Look and report, change nothing; default of all machines."""
    deletion_policy: DeletionPolicy = DeletionPolicy.DELETE
    """What happens to the EC2 resources when this object is deleted; default of all machines."""
    drift_policy: DriftPolicy = DriftPolicy.ENFORCE
    """What happens when EC2 resources differ from the spec: Enforce puts them back, Report says so; default of all
    machines."""
    aws: AwsSettings = Field(default=AwsSettings())
    """Which AWS account and region; default of all machines."""
    ssh: SshSettings = Field(default=SshSettings())
    """How machines are reached over SSH; default of all machines."""
    key_pairs: Annotated[tuple[KeyPairEntry, ...], Field(max_length=16, json_schema_extra=MERGED_BY_NAME)] = ()
    """EC2 key pairs of this deployment."""
    security_groups: Annotated[
        tuple[SecurityGroupEntry, ...], Field(max_length=32, json_schema_extra=MERGED_BY_NAME)
    ] = ()
    """EC2 security groups of this deployment."""
    # A NixMachine's spec with every field optional; the CRD generator puts that schema here, and below machines.
    defaults: Annotated[dict[str, Any], WithJsonSchema({"type": "object", "properties": {}})] = Field(
        default_factory=dict
    )
    """Merged under each machine: maps merge, lists and scalars replace."""
    machines: Annotated[
        tuple[MachineEntry, ...], Field(max_length=MACHINES_LIMIT, json_schema_extra=MERGED_BY_NAME)
    ] = ()
    """The machines; at most 256, all replicas counted."""

    @model_validator(mode="after")
    def _few_enough(self) -> Self:
        if sum(entry.count for entry in self.machines) > MACHINES_LIMIT:
            raise ValueError(_TOO_MANY)
        return self

    @model_validator(mode="after")
    def _groups_of_rules_exist(self) -> Self:
        known = {group.name for group in self.security_groups}
        for group in self.security_groups:
            for rule in (*group.ingress, *(group.egress or ())):
                for peer in rule.groups:
                    if peer not in known and not peer.startswith("sg-"):
                        raise ValueError(f"securityGroups[{group.name}]: groups of a rule: {peer} {_KNOWN_GROUP}")
        return self
