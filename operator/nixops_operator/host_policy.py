"""Where the operator may open an SSH connection to, as the administrator has decided. Pure.

Whoever may write a NixMachine chooses an address, or, with an own VPC, what is behind one; and the operator stands in
the cluster's network. So every address is judged before it is connected to, and the very address that was judged is the
one that is connected to: a name may show another one a moment later.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address, ip_network

from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked
from nixops_operator.ip_addresses import Address, Network, inner, lies_in

SSH_PORT = 22

# "This network" reaches the host itself on Linux; the last block is EC2's metadata and DNS over IPv6 (EC2 User Guide,
# "Access instance metadata"). Its IPv4 address, 169.254.169.254, is link-local.
_NOBODYS = tuple(ip_network(each) for each in ("0.0.0.0/8", "255.255.255.255/32", "fd00:ec2::/32"))


@dataclass(frozen=True)
class HostPolicy:
    """`allowed`: where given hosts may lie; none: nowhere. `denied`: where no machine may, instances of EC2 included.
    `ports`: of given hosts."""

    allowed: tuple[Network, ...] = ()
    denied: tuple[Network, ...] = ()
    ports: tuple[int, ...] = (SSH_PORT,)


@lru_cache(maxsize=4096)  # each pass asks, of the same few addresses
def judge(address: str, port: int, policy: HostPolicy) -> str | None:
    """Why a given host at `address` (no name) is refused, for people; None if it is not."""
    if port not in policy.ports:
        allowed = ", ".join(str(each) for each in policy.ports) or "none"
        return (
            f"port {port} is none that the administrator allows ({allowed}); "
            "have it added to the operator's setting hosts.allowedPorts"
        )
    if (refusal := judge_instance(address, policy)) is not None:
        return refusal
    if not lies_in(_reached(ip_address(address)), policy.allowed):
        return (
            f"{address} lies in no network that the administrator allows; "
            "have it added to the operator's setting hosts.allowedCidrs"
        )
    return None


def judge_instance(address: str, policy: HostPolicy) -> str | None:
    """Why an instance of EC2 at `address` is refused; None if it is not. It need not lie in `allowed`: EC2 has said
    that it is the account's own. But a VPC may have the same private networks as the cluster."""
    outer = ip_address(address)
    for each in {outer, *inner(outer)}:
        if (kind := _kind(each)) is not None:
            return f"{address} is {kind}, which is no machine's own; give the address that others reach it by"
        if lies_in(each, policy.denied):
            return (
                f"{address} lies in a network that the administrator denies (the operator's setting hosts.deniedCidrs: "
                "the cluster's own networks); move the machine, or have the setting changed"
            )
    return None


def choose(addresses: Iterable[str], port: int, policy: HostPolicy) -> str:
    """The first of a given host's addresses that is not refused. Raises Blocked (`HostForbidden`) with what is said of
    the first, if all are."""
    refusals = []
    for address in addresses:
        if (refusal := judge(address, port, policy)) is None:
            return address
        refusals.append(refusal)
    raise Blocked(Reason.HOST_FORBIDDEN, refusals[0] if refusals else "the name has no address")


def _reached(address: Address) -> Address:
    """Who answers in the end: behind an address that holds another one, that one."""
    return next(iter(inner(address)), address)


def _kind(address: Address) -> str | None:
    if address.is_loopback:
        return "a loopback address"
    if address.is_link_local:
        return "a link-local address"
    if address.is_multicast:
        return "a multicast address"
    if address.is_unspecified or lies_in(address, _NOBODYS):
        return "an address with a meaning of its own"
    return None
