"""What all operations share: clock, addresses, machines, moto, and the regions."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol

from nixops_lab.ec2.addresses import AddressBook
from nixops_lab.ec2.errors import Ec2Error, invalid, unsupported
from nixops_lab.ec2.ids import Ids
from nixops_lab.ec2.knobs import Panel
from nixops_lab.ec2.moto import Moto
from nixops_lab.ec2.network import read_network
from nixops_lab.ec2.records import InstanceType, Profile
from nixops_lab.ec2.region import Region
from nixops_lab.machines import Disk, MachineSpec, Rule

# moto's account.
ACCOUNT = "123456789012"


class Hosts(Protocol):
    """The part of `nixops_lab.machines.Machines` that instances need."""

    on_poweroff: Callable[[str], Awaitable[None]] | None

    async def create(self, spec: MachineSpec) -> None: ...
    async def start(self, name: str) -> None: ...
    async def stop(self, name: str) -> None: ...
    async def reboot(self, name: str) -> None: ...
    async def destroy(self, name: str) -> None: ...
    async def attach_disk(self, name: str, disk: Disk) -> None: ...
    async def detach_disk(self, name: str, volume_id: str) -> bool: ...
    async def resize_disk(self, volume_id: str, gib: int) -> None: ...
    async def copy_disk(self, volume_id: str, copy_id: str) -> None: ...
    async def remove_disk(self, volume_id: str) -> None: ...
    async def set_public_address(self, name: str, address: str | None) -> None: ...
    async def set_rules(self, name: str, ingress: Sequence[Rule], egress: Sequence[Rule]) -> None: ...


@dataclass
class Cloud:
    """The account: its regions come into being when they are first asked for."""

    hosts: Hosts
    panel: Panel
    moto: Moto
    seed: int
    addresses: AddressBook = field(default_factory=AddressBook)
    regions: dict[str, Region] = field(default_factory=dict)
    _instance_types: dict[str, InstanceType] = field(default_factory=dict)

    async def region(self, name: str) -> Region:
        """The region with its present network; records whose time is over are gone."""
        if name not in self.regions:
            network = await read_network(self.moto, name)
            # Another request may have been faster while this one waited.
            if name not in self.regions:
                new_ids, chance = Ids(Random(f"{self.seed}/{name}")), Random(f"{self.seed}/{name}/order")
                self.regions[name] = Region(name, self.panel, new_ids, network, chance)
                self.regions[name].adopt_network(network)
        region = self.regions[name]
        expired = {interface.id: interface.private_address for interface in region.interfaces.values()}
        region.forget_expired()
        for interface_id, address in expired.items():
            if interface_id not in region.interfaces:
                self.addresses.release_private(address)
        return region

    async def network_changed(self, name: str) -> None:
        """Read the network again after a call that moto answered."""
        if name in self.regions:
            self.regions[name].adopt_network(await read_network(self.moto, name))

    async def profile(self, wanted: Mapping[str, str]) -> Profile:
        """The IAM instance profile of an `IamInstanceProfileSpecification`. Raises `InvalidParameterValue`."""
        if "Arn" in wanted:
            raise unsupported("the lab knows IAM instance profiles by name")
        name = wanted.get("Name", "")
        found = await self.moto.instance_profile(name)
        if found is None:
            raise invalid(
                f"Value ({name}) for parameter iamInstanceProfile.name is invalid. Invalid IAM Instance Profile name"
            )
        return Profile(found["InstanceProfileName"], found["Arn"], found["InstanceProfileId"])

    async def instance_type(self, region: str, name: str) -> InstanceType:
        """An instance type, as moto's copy of EC2's list says. Raises `InvalidParameterValue`."""
        if name not in self._instance_types:
            try:
                reply = await self.moto.call(region, "DescribeInstanceTypes", {"InstanceTypes": [name]})
            except Ec2Error as error:
                raise Ec2Error("InvalidParameterValue", f"Invalid value '{name}' for InstanceType.") from error
            self._instance_types[name] = _instance_type(reply["InstanceTypes"][0])
        return self._instance_types[name]


def _instance_type(entry: Mapping[str, Any]) -> InstanceType:
    architectures = tuple(entry["ProcessorInfo"]["SupportedArchitectures"])
    return InstanceType(entry["InstanceType"], architectures, entry["VCpuInfo"]["DefaultVCpus"])
