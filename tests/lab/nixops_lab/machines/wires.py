"""The lab's namespace as a router: a way to each machine's wire, and a pit for everything else."""

import hashlib

from nixops_lab import network
from nixops_lab.machines import commands, firewall

CLIENT_ADDRESS = "203.0.113.10"
"""What machines see of clients in the lab's namespace, the operator too: an internet address (RFC 5737, TEST-NET-3)."""
CACHE_ADDRESS = "203.0.113.80"
"""Where the lab's binary cache is, for machines and operator: another one of those."""
PIT = "pit0"
GATEWAY = "169.254.1.1"


def wire_of(name: str) -> str:
    """The machine's interface in the lab's namespace. Interface names end at 15 characters; an instance id has 19."""
    return firewall.WIRE + hashlib.sha256(name.encode()).hexdigest()[:10]


class Router:
    """Works in the namespace `namespace` of /run/netns from wherever it is called."""

    def __init__(self, namespace: str) -> None:
        self._entering = network.entering(namespace)

    async def open(self) -> None:
        """Safe to repeat: rules start empty. What no machine has lies in a pit, where packets vanish: none leaves."""
        await self.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
        await self._ip(f"link delete {PIT}", missing="Cannot find device")
        # A wire with nobody at its far end; without ARP nobody is asked either. Not every kernel has dummy interfaces.
        await self._ip(f"link add {PIT} type veth peer name {PIT}-bottom")
        await self._ip(f"link set {PIT}-bottom arp off up")
        await self._ip(f"address add {CLIENT_ADDRESS}/32 dev {PIT}")
        await self._ip(f"address add {CACHE_ADDRESS}/32 dev {PIT}")
        await self._ip(f"link set {PIT} arp off up")
        await self._ip(f"route replace default dev {PIT} src {CLIENT_ADDRESS}")
        await self.nft(firewall.EMPTY_TABLE)

    async def close(self) -> None:
        """Safe to repeat."""
        await self._ip(f"link delete {PIT}", missing="Cannot find device")
        await self.nft(f"table {firewall.TABLE} {{}}\ndelete table {firewall.TABLE}\n")

    async def plug(self, name: str, private_address: str, pid: int) -> None:
        """A new wire to the namespace of process `pid`, where its end is `eth0`, down and without an address."""
        wire = wire_of(name)
        await self.unplug(name)
        await self._ip(f"link add {wire} type veth peer name eth0 netns {pid}")
        await self._ip(f"address add {GATEWAY}/32 dev {wire}")
        await self._ip(f"link set {wire} up")
        await self._ip(f"route replace {private_address}/32 dev {wire} src {CLIENT_ADDRESS}")

    async def unplug(self, name: str) -> None:
        """Safe to repeat. The kernel takes the wire with the machine's namespace, but some time later."""
        await self._ip(f"link delete {wire_of(name)}", missing="Cannot find device")

    async def nft(self, script: str) -> None:
        """All of it or nothing."""
        await commands.succeed([*self._entering, "nft", "-f", "-"], script.encode())

    async def run(self, *argv: str) -> bytes:
        return await commands.succeed([*self._entering, *argv])

    async def _ip(self, arguments: str, missing: str | None = None) -> None:
        """`missing`: the error that says that there is nothing to do."""
        argv = [*self._entering, "ip", *arguments.split()]
        if missing is None:
            await commands.succeed(argv)
            return
        completed = await commands.run(argv)
        if completed.exit_status != 0 and missing not in completed.stderr.decode(errors="replace"):
            await commands.succeed(argv)
