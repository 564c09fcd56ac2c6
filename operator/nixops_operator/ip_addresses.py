"""Where packets to an address end: behind some IPv6 addresses stands an IPv4 one. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# IPv6 addresses that a router turns into the IPv4 address in their last four bytes: RFC 4291 (2.5.5), RFC 6052,
# RFC 8215. 6to4 (RFC 3056) and Teredo (RFC 4380) have it elsewhere, and Python knows where.
_ENDING_IN_IPV4 = tuple(IPv6Network(each) for each in ("::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48"))
_ISATAP = (0x00005EFE, 0x02005EFE)  # third quarter of an address whose last is IPv4 (RFC 5214, 6.1)


def inner(address: Address) -> Iterator[IPv4Address]:
    """The IPv4 addresses in it, the one that answers in the end first; none for most."""
    if isinstance(address, IPv4Address):
        return
    last = IPv4Address(int(address) & 0xFFFFFFFF)
    if address.is_loopback or address.is_unspecified:
        return
    if any(address in network for network in _ENDING_IN_IPV4) or int(address) >> 32 & 0xFFFFFFFF in _ISATAP:
        yield last
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from reversed(address.teredo)  # the client, then the server


def lies_in(address: Address, networks: Iterable[Network]) -> bool:
    """Whether one of the networks holds it; those of the other version hold nothing."""
    return any(network.version == address.version and address in network for network in networks)
