"""One machine: its disk, and its power from the first boot to the last."""

import asyncio
import logging
import os
import re
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path

from nixops_lab import network
from nixops_lab.machines import commands, wires
from nixops_lab.machines.cgroups import MachineCgroups
from nixops_lab.machines.disk import base_system, make_disk
from nixops_lab.machines.spec import Completed, Disk, MachineError, MachineSpec, PowerState, Standing
from nixops_lab.machines.volumes import FREE_SECONDS, VolumeFiles
from nixops_lab.machines.wires import Router

_log = logging.getLogger(__name__)

LAUNCH = Path(__file__).parent / "launch.sh"
# With --keep-unit nspawn leaves a reboot to its caller and says so by this status (systemd: EXIT_FORCE_RESTART).
REBOOT_ASKED = 133
# What systemd's init takes as requests (systemd(1), "Signals").
POWER_OFF, REBOOT = signal.SIGRTMIN + 4, signal.SIGRTMIN + 5
BOOT_SECONDS = 60.0
ASK_AGAIN_SECONDS = 1.0
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# What systemd says of itself while it works (systemctl(1), "is-system-running").
ANSWERS = {"initializing", "starting", "running", "degraded", "maintenance", "stopping"}
PATH = "/run/wrappers/bin:/run/current-system/sw/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Machine:
    """Made without a disk and without power. `grace`: seconds it has for a clean end; `waking`: to answer after a boot.

    Calls that change the power must not overlap: `Machines` sees to that.
    """

    def __init__(
        self,
        spec: MachineSpec,
        folder: Path,
        root: Path,
        namespace: str,
        router: Router,
        volumes: VolumeFiles,
        grace: float,
        waking: float,
    ) -> None:
        self.spec = spec
        self.on_poweroff: Callable[[str], Awaitable[None]] | None = None
        self._folder = folder
        self._root = root
        self._namespace = namespace
        self._router = router
        self._volumes = volumes
        self._disks: dict[str, str] = {}  # volume id → the disk, in the words of lab-disk
        self._grace = grace
        self._waking = waking
        self._booted_at = 0.0
        self._cgroups = MachineCgroups(namespace, spec.name)
        self._stopping = False
        self._booted = asyncio.Event()
        self._off = asyncio.Event()
        self._power: asyncio.Task[None] | None = None

    @property
    def state(self) -> PowerState:
        return "off" if self._power is None else "on"

    async def standing(self) -> Standing:
        """Asks its init: power alone says nothing of a system that hangs, or found nothing to boot."""
        if self._power is None:
            return "off"
        asking = ["timeout", "--kill-after=1", "5", "systemctl", "is-system-running"]
        with suppress(MachineError):  # between the two halves of a reboot
            if (await self.run(asking, b"")).stdout.decode().strip() in ANSWERS:
                return "on"
        is_waking = asyncio.get_running_loop().time() - self._booted_at < self._waking
        return "booting" if is_waking else "dead"

    def last_line(self) -> str:
        """Of its console, without colours and control characters; empty if it said nothing."""
        words = COLOUR.sub("", self._last_words())
        lines = ("".join(filter(str.isprintable, line)).strip() for line in words.splitlines())
        return ([line for line in lines if line] or [""])[-1]

    @property
    def leader(self) -> int | None:
        """Pid of its init, as seen here; None while it has none."""
        return self._cgroups.leader()

    @property
    def console(self) -> Path:
        """What it wrote on its console, over all boots."""
        return self._folder / "console"

    def create(self) -> None:
        """A fresh disk. Raises MachineError if there is no image for it."""
        system = base_system(self._root, self.spec)
        self._folder.mkdir(parents=True, mode=0o755)
        for name in ("disk", "work", "root"):
            (self._folder / name).mkdir(mode=0o755)
        make_disk(self._folder / "disk", system, self.spec)
        self.console.touch(mode=0o600)

    async def start(self) -> None:
        """Returns when its init runs. Raises MachineError if that fails; then it is off. On already: no-op."""
        if self._power is not None:
            return
        self._stopping = False
        process = await self._boot()
        self._off.clear()
        self._power = asyncio.create_task(self._stay_on(process), name=f"power of {self.spec.name}")

    async def stop(self) -> None:
        """Asks its init to power off and waits for the grace, then cuts the power. Off already: no-op."""
        if self._power is None:
            return
        self._stopping = True
        await self._ask(POWER_OFF, self._power)
        await self._cgroups.end()
        await self._off.wait()

    async def reboot(self) -> None:
        """Returns when the next init runs: cleanly, or hard after the grace. Off: raises MachineError."""
        if self._power is None:
            raise MachineError(f"{self.spec.name} is off")
        self._booted.clear()
        booted = asyncio.create_task(self._booted.wait())
        try:
            await self._ask(REBOOT, booted)
            if not booted.done():
                self._stopping = True
                await self._cgroups.end()
                await self._off.wait()
                await self.start()
        finally:
            booted.cancel()

    async def kill(self) -> None:
        """Cuts the power, as when its host fails: nobody asked for it, so `on_poweroff` hears of it."""
        on = self._power is not None
        await self._cgroups.end()
        if on:
            await self._off.wait()

    async def destroy(self) -> None:
        """Cuts the power and removes the disk; its volumes are free then."""
        self._stopping = True
        await self.kill()
        deadline = time.monotonic() + FREE_SECONDS
        for volume_id in list(self._disks):
            # The kernel unmounts what was in a namespace some time after its last process has ended.
            while not await asyncio.to_thread(self._volumes.unplug, volume_id):
                if time.monotonic() > deadline:
                    raise MachineError(f"{self.spec.name} is off, and {volume_id} is still in use")
                await asyncio.sleep(0.02)
            del self._disks[volume_id]
        await asyncio.to_thread(shutil.rmtree, self._folder)

    async def attach(self, disk: Disk) -> None:
        """It has the disk from now on, over all boots."""
        loop = await asyncio.to_thread(self._volumes.plug, disk.volume_id, disk.gib)
        major, minor = (Path("/sys/block") / loop / "dev").read_text().strip().split(":")
        taken = {int(word.split(":")[3]) for word in self._disks.values()}
        number = min(set(range(1, len(taken) + 2)) - taken)
        self._disks[disk.volume_id] = f"{loop}:{major}:{minor}:{number}:{disk.volume_id}:{disk.device}"
        await self._tell_of_disk("add", disk.volume_id)

    async def detach(self, volume_id: str) -> bool:
        """False while something on the machine uses it. One that it has not: True."""
        if volume_id not in self._disks:
            return True
        if not await asyncio.to_thread(self._volumes.unplug, volume_id):
            return False
        await self._tell_of_disk("remove", volume_id)
        del self._disks[volume_id]
        return True

    async def _tell_of_disk(self, what: str, volume_id: str) -> None:
        while self._power is not None and self.leader is None:  # noqa: ASYNC110 - between the two halves of a reboot
            await asyncio.sleep(0.02)
        if self._power is None:
            return
        told = await self.run(["/usr/sbin/lab-disk", what, self._disks[volume_id]], b"")
        if told.exit_status != 0:
            raise MachineError(f"{self.spec.name}: {told.stderr.decode(errors='replace').strip()}")

    async def run(self, argv: Sequence[str], stdin: bytes) -> Completed:
        """A command in all of its namespaces, as root."""
        leader = self.leader
        if leader is None:
            raise MachineError(f"{self.spec.name} is {self.state}: nothing can run in it")
        clean = ["/usr/bin/env", "-i", f"PATH={PATH}", "HOME=/root", "USER=root"]
        return await commands.run(["nsenter", f"--target={leader}", "--all", "--", *clean, *argv], stdin)

    async def _stay_on(self, process: asyncio.subprocess.Process) -> None:
        """Until the machine is off: boots again when it asks for a reboot, as firmware would."""
        try:
            while True:
                self._booted.set()
                status = await process.wait()
                await self._power_down()
                if status != REBOOT_ASKED or self._stopping:
                    return
                process = await self._boot()
        except MachineError:
            _log.exception("%s did not boot again", self.spec.name)
        finally:
            self._power = None
            self._off.set()
            self._booted.set()
            if not self._stopping:
                _log.warning(
                    "%s went off, and nobody asked for it; its console ends with: %s", self.spec.name, self.last_line()
                )
                if self.on_poweroff is not None:
                    await self.on_poweroff(self.spec.name)

    async def _boot(self) -> asyncio.subprocess.Process:
        """Returns when its init runs. If it fails or is cancelled, nothing of it is left."""
        self._cgroups.create()
        try:
            async with asyncio.timeout(BOOT_SECONDS):
                process = await self._launch()
                await self._wait_for_init(process)
        except BaseException as error:
            await self._power_down()
            if isinstance(error, TimeoutError | MachineError):
                raise MachineError(f"{self.spec.name} does not boot: {error}\n{self._last_words()}") from error
            raise
        self._booted_at = asyncio.get_running_loop().time()
        return process

    async def _launch(self) -> asyncio.subprocess.Process:
        spec = self.spec
        host = f"ip-{spec.private_address.replace('.', '-')}" if spec.name.startswith("i-") else spec.name
        arguments = [
            self._folder,
            self._root,
            spec.name,
            host,
            spec.private_address,
            wires.GATEWAY,
            len(self._disks),
            *self._disks.values(),
            *self._cgroups.folders,
        ]
        process = await asyncio.create_subprocess_exec(
            *network.entering(self._namespace),
            *("unshare", "--mount", "--net", "--propagation=private", "--"),
            *(str(argument) for argument in (LAUNCH, *arguments)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        said = await process.stdout.readline()
        if said != b"ready\n":
            raise MachineError(f"launch.sh: {said.decode(errors='replace').strip()}")
        await self._router.plug(spec.name, spec.private_address, process.pid)
        process.stdin.write(b"plugged\n")
        with suppress(ConnectionError):  # it ended: whoever waits for its init sees that
            await process.stdin.drain()
        process.stdin.close()
        return process

    async def _wait_for_init(self, process: asyncio.subprocess.Process) -> None:
        while self.leader is None:
            if process.returncode == REBOOT_ASKED:
                return  # it was up, and has panicked, between two looks
            if process.returncode is not None:
                raise MachineError(f"systemd-nspawn ended with {process.returncode}")
            await asyncio.sleep(0.02)

    async def _ask(self, number: int, done: asyncio.Task[None] | asyncio.Task[bool]) -> None:
        """Until `done`, for the grace. More than once: an init that is not ready yet loses the signal."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._grace
        while not done.done() and (left := deadline - loop.time()) > 0:
            if (leader := self.leader) is not None:
                with suppress(ProcessLookupError):
                    os.kill(leader, number)
            await asyncio.wait({done}, timeout=min(ASK_AGAIN_SECONDS, left))

    async def _power_down(self) -> None:
        await self._cgroups.end()
        await self._router.unplug(self.spec.name)

    def _last_words(self) -> str:
        return self.console.read_text(errors="replace")[-2000:]
