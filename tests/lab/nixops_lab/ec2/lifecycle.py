"""Instances as machines: what happens after the reply to Run, Start, Stop, Reboot and Terminate.

    pending ──booted, delay over──► running ──► stopping ──machine off──► stopped ──► pending …
       └────────────────────────────────┴──► shutting-down ──machine gone──► terminated

A launch may also fail (pending ──► terminated), and a machine power itself off (pending or running ──► stopping).

Facts: EC2 User Guide, "Amazon EC2 instance state changes"; StateReason codes: EC2 API Reference, "StateReason".
"""

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import replace
from datetime import UTC, datetime

from nixops_lab.ec2.cloud import Cloud
from nixops_lab.ec2.firewall import Firewall
from nixops_lab.ec2.knob_values import Death
from nixops_lab.ec2.records import Instance
from nixops_lab.ec2.region import Region
from nixops_lab.machines import MachineSpec

_log = logging.getLogger(__name__)

USER_SHUTDOWN = ("Client.UserInitiatedShutdown", "Client.UserInitiatedShutdown: User initiated shutdown")
INSTANCE_SHUTDOWN = (
    "Client.InstanceInitiatedShutdown",
    "Client.InstanceInitiatedShutdown: Instance initiated shutdown",
)
# EC2 API Reference, "StateReason".
_MESSAGES = {
    "Client.InternalError": "A client error caused the instance to terminate at launch",
    "Client.InvalidSnapshot.NotFound": "The specified snapshot was not found",
    "Client.VolumeLimitExceeded": "The limit on the number of EBS volumes or total storage was exceeded",
    "Server.InsufficientInstanceCapacity": "There was insufficient capacity available to satisfy the launch request",
    "Server.InternalError": "Internal error on launch",
}
# A volume in use: who uses it tells nobody.
LOOK_AGAIN_SECONDS = 0.2
_ON = frozenset({"pending", "running"})
NOT_BOOTED = ("Server.InternalError", "Server.InternalError: Internal error on launch")


def user_initiated(now: float) -> str:
    """The `StateTransitionReason` of a stop or terminate by a caller."""
    return f"User initiated ({datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M:%S} GMT)"


class Lifecycle:
    """Runs the transitions. The state changes at once, the machine follows; one thing at a time per machine."""

    def __init__(self, cloud: Cloud, firewall: Firewall) -> None:
        self._cloud = cloud
        self._firewall = firewall
        self._tasks: set[asyncio.Task[None]] = set()
        self._turns: dict[str, asyncio.Lock] = {}

    # What operations call: each returns at once.

    def launch(self, region: Region, instance_id: str) -> None:
        """Make the machine of a pending instance and boot it, unless launches are set to fail."""
        if (dies := self._cloud.panel.knobs.launch_dies) is not None:
            self._spawn(self._die(region, instance_id, dies))
        else:
            self._spawn(self._boot(region, instance_id, is_new=True))

    def start(self, region: Region, instance_id: str) -> None:
        """stopped → pending."""
        self._change(
            region,
            instance_id,
            state="pending",
            state_reason=("pending", "pending"),
            transition_reason="",
            launch_time=self._cloud.panel.clock(),
        )
        self._spawn(self._boot(region, instance_id, is_new=False))

    def stop(self, region: Region, instance_id: str) -> None:
        """running → stopping."""
        now = self._cloud.panel.clock()
        self._change(
            region,
            instance_id,
            state="stopping",
            state_reason=USER_SHUTDOWN,
            transition_reason=user_initiated(now),
        )
        self._spawn(self._halt(region, instance_id))

    def terminate(self, region: Region, instance_id: str) -> None:
        """Any state → shutting-down."""
        now = self._cloud.panel.clock()
        self._change(
            region,
            instance_id,
            state="shutting-down",
            state_reason=USER_SHUTDOWN,
            transition_reason=user_initiated(now),
        )
        self._spawn(self._remove(region, instance_id))

    def readdress(self, region: Region, instance_id: str) -> None:
        """Its elastic address has come or gone: answers and packets follow in a moment."""
        self._spawn(self._readdress(region, instance_id))

    def let_go(self, region: Region, volume_id: str) -> None:
        """A volume that is to be detached goes when nothing on its machine uses it."""
        self._spawn(self._let_go(region, volume_id))

    def reboot(self, instance_id: str) -> None:
        """The state stays running."""
        self._spawn(self._reboot(instance_id))

    async def powered_off(self, name: str) -> None:
        """The machine has powered itself off from inside. Names that are no instance are not EC2's."""
        for region in self._cloud.regions.values():
            instance = region.instances.get(name)
            if instance is not None and instance.state in {"pending", "running"}:
                self._went_off(region, instance)

    def _went_off(self, region: Region, instance: Instance) -> None:
        is_last = instance.shutdown_behavior == "terminate"
        self._change(
            region,
            instance.id,
            state="shutting-down" if is_last else "stopping",
            state_reason=INSTANCE_SHUTDOWN,
            transition_reason="",
        )
        self._spawn(self._remove(region, instance.id) if is_last else self._halt(region, instance.id))

    async def close(self) -> None:
        """Give up all transitions; machines stay as they are."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # What then happens to the machine.

    async def _boot(self, region: Region, instance_id: str, *, is_new: bool) -> None:
        since = region.instances[instance_id].launch_time
        async with self._turn(instance_id):
            try:
                if not await self._power_on(region, instance_id, is_new=is_new):
                    return
            except Exception:  # noqa: BLE001 - EC2 tells a failed launch by the state: there is nobody to raise to
                _log.exception("%s did not boot", instance_id)
                self._give_up(region, instance_id, is_new=is_new)
                return
        if (after := self._cloud.panel.knobs.boot_poweroff) is not None:
            self._spawn(self._power_off_itself(region, instance_id, since, after))
        await self._cloud.panel.elapsed("pending_seconds", since)
        instance = region.instances.get(instance_id)
        # Stopped and started again meanwhile: then that start tells when it runs.
        if instance is not None and instance.state == "pending" and instance.launch_time == since:
            self._change(region, instance_id, state="running", state_reason=None)

    async def _die(self, region: Region, instance_id: str, dies: Death) -> None:
        """The launch fails after its reply: no machine comes of it."""
        await self._cloud.panel.passed(dies.seconds, region.instances[instance_id].launch_time)
        instance = region.instances.get(instance_id)
        if instance is not None and instance.state == "pending":
            reason = f"{dies.code}: {_MESSAGES.get(dies.code, 'The launch failed')}"
            self._change(region, instance_id, state_reason=(dies.code, reason))
            self._end(region, instance_id)

    async def _power_off_itself(self, region: Region, instance_id: str, since: float, after: float) -> None:
        await self._cloud.panel.passed(after, since)
        instance = region.instances.get(instance_id)
        if instance is not None and instance.state in {"pending", "running"} and instance.launch_time == since:
            self._went_off(region, instance)

    def _give_up(self, region: Region, instance_id: str, *, is_new: bool) -> None:
        """EC2 User Guide, "Troubleshoot instance launch issues": a launch ends terminated, a start stopped."""
        if region.instances[instance_id].state != "pending":
            return
        if is_new:
            self._change(region, instance_id, state="shutting-down", state_reason=NOT_BOOTED)
            self._spawn(self._remove(region, instance_id))
        else:
            self._release_public(region, instance_id)
            self._change(region, instance_id, state="stopped", state_reason=NOT_BOOTED)

    async def _power_on(self, region: Region, instance_id: str, *, is_new: bool) -> bool:
        self._set_public_address(region, instance_id)
        instance = region.instances[instance_id]
        hosts = self._cloud.hosts
        if is_new:
            await hosts.create(_spec(instance))
        else:
            await hosts.set_public_address(instance_id, instance.public_address)
        self._firewall.admit(instance_id)
        # Before the boot: no packet may reach a machine whose rules are not there yet.
        await self._firewall.apply(region)
        if region.instances[instance_id].state != "pending":
            return False
        await hosts.start(instance_id)
        return True

    async def _halt(self, region: Region, instance_id: str) -> None:
        since = self._cloud.panel.clock()
        async with self._turn(instance_id):
            if region.instances[instance_id].state != "stopping":
                return
            await self._cloud.hosts.stop(instance_id)
            await self._cloud.hosts.set_public_address(instance_id, None)
            self._release_public(region, instance_id)
        await self._cloud.panel.elapsed("stopping_seconds", since)
        instance = region.instances.get(instance_id)
        if instance is not None and instance.state == "stopping":
            self._change(region, instance_id, state="stopped")

    async def _remove(self, region: Region, instance_id: str) -> None:
        since = self._cloud.panel.clock()
        async with self._turn(instance_id):
            # First: a machine that is half gone cannot take rules.
            await self._firewall.forget(instance_id)
            await self._cloud.hosts.destroy(instance_id)
            self._disassociate(region, instance_id)
            self._release_public(region, instance_id)
        await self._cloud.panel.elapsed("shutting_down_seconds", since)
        self._end(region, instance_id)
        await self._firewall.apply(region)

    def _end(self, region: Region, instance_id: str) -> None:
        """→ terminated, with what goes with it."""
        now = self._cloud.panel.clock()
        self._change(region, instance_id, state="terminated", terminated_at=now)
        instance = region.instances[instance_id]
        interface = region.interfaces[instance.interface_id]
        region.interfaces[interface.id] = replace(interface, terminated_at=now)
        volume = region.volumes[instance.volume_id]
        if volume.is_deleted_on_termination:
            del region.volumes[volume.id]
            region.tags.forget(volume.id)
        else:
            region.volumes[volume.id] = replace(volume, is_attached=False, instance_id="", device="")
        for other in list(region.volumes.values()):
            if other.instance_id == instance_id:
                region.volumes[other.id] = replace(other, is_attached=False, is_held=False, instance_id="", device="")

    async def _reboot(self, instance_id: str) -> None:
        async with self._turn(instance_id):
            await self._cloud.hosts.reboot(instance_id)

    async def _let_go(self, region: Region, volume_id: str) -> None:
        while (volume := region.volumes.get(volume_id)) is not None and volume.is_held:
            if await self._cloud.hosts.detach_disk(volume.instance_id, volume_id):
                now = self._cloud.panel.clock()
                region.volumes[volume_id] = replace(region.volumes[volume_id], is_held=False, moved_at=now)
                return
            await asyncio.sleep(LOOK_AGAIN_SECONDS)

    async def _readdress(self, region: Region, instance_id: str) -> None:
        await self._cloud.panel.elapsed("address_seconds", self._cloud.panel.clock())
        async with self._turn(instance_id):
            instance = region.instances.get(instance_id)
            if instance is None or not instance.is_live:
                return
            self._set_public_address(region, instance_id)
            if instance.state in _ON:
                address = region.instances[instance_id].public_address
                await self._cloud.hosts.set_public_address(instance_id, address)

    def _set_public_address(self, region: Region, instance_id: str) -> None:
        """Show what it is to have now: its elastic address, or else, while it is on, one of EC2's."""
        instance, elastic = region.instances[instance_id], region.elastic_address_of(instance_id)
        if elastic is not None:
            if instance.public_address != elastic.public_address:
                self._release_public(region, instance_id)
                self._change(region, instance_id, public_address=elastic.public_address, has_elastic_address=True)
            return
        if instance.has_elastic_address:
            self._change(region, instance_id, public_address=None, has_elastic_address=False)
        if (
            instance.state in _ON
            and instance.has_public_address
            and region.instances[instance_id].public_address is None
        ):
            self._change(region, instance_id, public_address=self._cloud.addresses.public())

    def _release_public(self, region: Region, instance_id: str) -> None:
        """An elastic one stays."""
        instance = region.instances[instance_id]
        if instance.public_address is not None and not instance.has_elastic_address:
            self._change(region, instance_id, public_address=None)
            self._cloud.addresses.release_public(instance.public_address)

    def _disassociate(self, region: Region, instance_id: str) -> None:
        if (elastic := region.elastic_address_of(instance_id)) is not None:
            region.addresses[elastic.id] = replace(elastic, association_id=None, instance_id=None)
        if region.instances[instance_id].has_elastic_address:
            self._change(region, instance_id, public_address=None, has_elastic_address=False)

    def _change(self, region: Region, instance_id: str, **changes: object) -> None:
        region.change(instance_id, **changes)

    def _turn(self, instance_id: str) -> asyncio.Lock:
        return self._turns.setdefault(instance_id, asyncio.Lock())

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # The instance keeps its transient state, which is what a stuck instance looks like in EC2.
            _log.error("a transition failed", exc_info=error)


def _spec(instance: Instance) -> MachineSpec:
    return MachineSpec(
        name=instance.id,
        private_address=instance.private_address,
        public_address=instance.public_address,
        release=instance.image.release,
        user_data=instance.user_data,
        authorized_keys=(instance.authorized_key,) if instance.authorized_key else (),
    )
