"""All machines of one lab."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from nixops_lab.machines import cgroups, firewall, volumes
from nixops_lab.machines.leftovers import VOLUMES, clear
from nixops_lab.machines.machine import Machine
from nixops_lab.machines.spec import Completed, Disk, MachineError, MachineSpec, PowerState, Rule, Standing
from nixops_lab.machines.volumes import VolumeFiles
from nixops_lab.machines.wires import Router, wire_of


class Machines:
    """Machines on the root file system `root` (from `root_filesystem.build`), behind the router in `namespace`.

    `grace`: seconds that a machine has to power off or reboot cleanly before its power is cut. (EC2 gives minutes.)
    `waking`: seconds after which one that does not answer is called dead.
    Calls for one machine wait for each other; machines are independent. All need root. Unknown names raise
    MachineError, except where a method says otherwise.
    """

    def __init__(
        self,
        lab_dir: str | os.PathLike[str],
        namespace: str,
        root: Path,
        grace: float = 15.0,
        waking: float = 60.0,
    ) -> None:
        self.on_poweroff: Callable[[str], Awaitable[None]] | None = None
        self._lab_dir = Path(lab_dir)
        self._namespace = namespace
        self._root = root.resolve()
        self._grace = grace
        self._waking = waking
        self._router = Router(namespace)
        self._volumes = VolumeFiles(self._lab_dir / VOLUMES)
        self._machines: dict[str, Machine] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._public: dict[str, str] = {}
        self._moving = asyncio.Lock()

    async def start(self, name: str | None = None) -> None:
        """Without a name: clears what a crash left, and opens the router. With one: boots that machine.

        Returns when its init runs; on already: no-op. Raises MachineError, with the console's end, if it does not.
        """
        if name is None:
            await asyncio.to_thread(clear, self._lab_dir, self._namespace)
            await self._router.open()
            return
        async with self._lock(name):
            await self._machine(name).start()

    async def stop(self, name: str | None = None) -> None:
        """With a name: a clean poweroff, hard after a limit; the disk stays. Without: all end, and nothing is left."""
        if name is not None:
            async with self._lock(name):
                await self._machine(name).stop()
            return
        await asyncio.gather(*(self.stop(each) for each in self.names()))
        for each in self.names():
            await self.destroy(each)
        await self._router.close()
        await asyncio.to_thread(volumes.clear, self._lab_dir / VOLUMES)
        cgroups.remove_group(self._namespace)

    async def create(self, spec: MachineSpec, root: Path | None = None) -> None:
        """Disk and network, powered off; nothing may come in, everything may go out. `root`: another root file system
        than the others', absolute.

        Raises MachineError for a name in use and for a release without an image.
        """
        async with self._lock(spec.name):
            if spec.name in self._machines:
                raise MachineError(f"there is a machine {spec.name} already")
            folder = self._lab_dir / "machines" / spec.name
            disk = root or self._root
            machine = Machine(
                spec, folder, disk, self._namespace, self._router, self._volumes, self._grace, self._waking
            )
            machine.on_poweroff = self._powered_off
            await asyncio.to_thread(machine.create)
            try:
                await self._router.nft(firewall.add_machine(wire_of(spec.name), spec.private_address))
            except BaseException:
                await machine.destroy()
                raise
            self._machines[spec.name] = machine
            await self.set_public_address(spec.name, spec.public_address)

    async def reboot(self, name: str) -> None:
        """Cleanly, hard after a limit; returns when the next init runs. Off: raises MachineError."""
        async with self._lock(name):
            await self._machine(name).reboot()

    async def kill(self, name: str) -> None:
        """Cuts the power as a failing host would: `on_poweroff` is called. Off: no-op."""
        async with self._lock(name):
            await self._machine(name).kill()

    async def destroy(self, name: str) -> None:
        """Cuts the power and removes disk, addresses and rules; `on_poweroff` is not called. Unknown name: no-op."""
        async with self._lock(name):
            if name not in self._machines:
                return
            await self._machines[name].destroy()
            await self.set_public_address(name, None)
            await self._router.nft(firewall.remove_machine(wire_of(name), self.spec(name).private_address))
            del self._machines[name]

    async def attach_disk(self, name: str, disk: Disk) -> None:
        """On or off: the machine has it now, and after each boot. A volume is empty before the first time."""
        async with self._lock(name):
            await self._machine(name).attach(disk)

    async def detach_disk(self, name: str, volume_id: str) -> bool:
        """False while something on the machine uses it; what is in it stays. One that it has not: True."""
        async with self._lock(name):
            return name not in self._machines or await self._machine(name).detach(volume_id)

    async def resize_disk(self, volume_id: str, gib: int) -> None:
        """Larger, at once; a machine that has it sees it so."""
        await asyncio.to_thread(self._volumes.resize, volume_id, gib)

    async def copy_disk(self, volume_id: str, copy_id: str) -> None:
        """What is in a volume at this moment, for another one, or a snapshot."""
        await asyncio.to_thread(self._volumes.copy, volume_id, copy_id)

    async def remove_disk(self, volume_id: str) -> None:
        """What is in a volume that no machine has. Safe to repeat."""
        await asyncio.to_thread(self._volumes.remove, volume_id)

    async def set_public_address(self, name: str, address: str | None) -> None:
        """At once: connections to the old address die in silence, the new one is taken from whoever has it."""
        own = self._machine(name).spec.private_address
        async with self._moving:
            public = {held: private for held, private in self._public.items() if held != address and private != own}
            if address is not None:
                public[address] = own
            await self._router.nft(firewall.move_public_addresses(self._public, public))
            self._public = public

    async def set_rules(self, name: str, ingress: Sequence[Rule], egress: Sequence[Rule]) -> None:
        """All rules of the machine, in one step; connections that are established stay. Kept while it is off."""
        spec = self._machine(name).spec
        await self._router.nft(firewall.set_rules(wire_of(name), spec.private_address, ingress, egress))

    async def run(self, name: str, argv: Sequence[str], stdin: bytes = b"") -> Completed:
        """A command in the machine as root, from outside: neither sshd nor rules matter. Off: raises MachineError."""
        return await self._machine(name).run(argv, stdin)

    def state(self, name: str) -> PowerState:
        """`on` also between the two halves of a reboot."""
        return self._machines[name].state if name in self._machines else "absent"

    async def standing(self, name: str) -> Standing:
        """What a look at the machine finds; takes a moment, and seconds for one that does not answer."""
        return await self._machines[name].standing() if name in self._machines else "absent"

    def last_line(self, name: str) -> str:
        """What it said last on its console."""
        return self._machine(name).last_line()

    def names(self) -> list[str]:
        return sorted(self._machines)

    def spec(self, name: str) -> MachineSpec:
        """As created."""
        return self._machine(name).spec

    def public_address(self, name: str) -> str | None:
        """The present one."""
        own = self._machine(name).spec.private_address
        return next((public for public, private in self._public.items() if private == own), None)

    def leader(self, name: str) -> int | None:
        """Pid of its init for nsenter(1); None while it is off."""
        return self._machine(name).leader

    def console(self, name: str) -> Path:
        """The file with its console output over all boots."""
        return self._machine(name).console

    def _machine(self, name: str) -> Machine:
        if name not in self._machines:
            raise MachineError(f"there is no machine {name}; there are: {', '.join(self.names()) or 'none'}")
        return self._machines[name]

    def _lock(self, name: str) -> asyncio.Lock:
        return self._locks.setdefault(name, asyncio.Lock())

    async def _powered_off(self, name: str) -> None:
        if self.on_poweroff is not None:
            await self.on_poweroff(name)
