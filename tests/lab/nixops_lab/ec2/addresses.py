"""The lab's own addresses: one book for all regions, because all machines share one network."""

import ipaddress
from collections import deque

from nixops_lab.ec2.errors import Ec2Error, invalid
from nixops_lab.ec2.network import Subnet

# TEST-NET-2 of RFC 5737: never routed, so that a mistake reaches nobody.
PUBLIC_BLOCK = ipaddress.IPv4Network("198.51.100.0/24")
# The first four addresses and the last one of a subnet are AWS': VPC User Guide, "Subnet CIDR blocks".
RESERVED_AT_START = 4


class AddressBook:
    """Hands out addresses and takes them back. A released public address comes again as late as possible."""

    def __init__(self) -> None:
        self._public = deque(str(address) for address in PUBLIC_BLOCK.hosts())
        self._held: set[str] = set()
        self._next: dict[ipaddress.IPv4Network, int] = {}

    def public(self) -> str:
        """One that nobody has. Raises `AddressLimitExceeded` when all are in use."""
        if not self._public:
            raise Ec2Error("AddressLimitExceeded", f"All addresses of {PUBLIC_BLOCK} are in use")
        return self._public.popleft()

    def release_public(self, address: str) -> None:
        """Give a public address back."""
        self._public.append(address)

    def private(self, subnet: Subnet, count: int) -> list[str]:
        """Free addresses of the subnet, all or none. Raises `InsufficientFreeAddressesInSubnet`."""
        usable = subnet.block.num_addresses - RESERVED_AT_START - 1
        start = self._next.get(subnet.block, 0)
        taken: list[str] = []
        for step in range(usable):
            offset = (start + step) % usable
            address = str(subnet.block.network_address + RESERVED_AT_START + offset)
            if address not in self._held:
                taken.append(address)
            if len(taken) == count:
                self._held.update(taken)
                self._next[subnet.block] = offset + 1
                return taken
        raise Ec2Error(
            "InsufficientFreeAddressesInSubnet",
            f"There are not enough free addresses in subnet '{subnet.id}' to satisfy the requested number of "
            "instances.",
        )

    def hold_private(self, subnet: Subnet, address: str) -> str:
        """Take the address that the caller names."""
        try:
            wanted = ipaddress.IPv4Address(address)
        except ValueError:
            raise invalid(f"Invalid IPv4 address: {address}") from None
        first = subnet.block.network_address + RESERVED_AT_START
        if not first <= wanted < subnet.block.broadcast_address:
            raise invalid("Address does not fall within the subnet's address range")
        if str(wanted) in self._held:
            raise Ec2Error("InvalidIPAddress.InUse", f"Address {address} is in use.")
        self._held.add(str(wanted))
        return str(wanted)

    def release_private(self, address: str) -> None:
        """Give a private address back."""
        self._held.discard(address)
