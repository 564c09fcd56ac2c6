"""One NixMachine on EC2 beside a fake API server and a fake EC2, for its looks and its steps one by one. Hosts and jobs
are not the matter here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, cast

from fakes.cloud import DEFAULT_VPC, NIXOS_IMAGE, NIXOS_OWNER, FakeClouds
from fakes.kube import CLUSTER_ID, FakeKube, Secret
from nixops_operator import names
from nixops_operator.cache import Cache
from nixops_operator.errors import NotYet, OperatorError
from nixops_operator.facts.cloud import InstanceState, KeyPair, LaunchRequest, SecurityGroup
from nixops_operator.facts.kube import Body, Key, Kind
from nixops_operator.facts.nix import Folder
from nixops_operator.host_policy import HostPolicy
from nixops_operator.informers.cloud import CloudInformers
from nixops_operator.machine import observe_cloud
from nixops_operator.machine.apply import apply
from nixops_operator.machine.desired import Desired, Leaving, read_machine
from nixops_operator.machine.observed import ObservedCloud
from nixops_operator.reads import Reads
from nixops_operator.ssh_keys import PrivateKey, generate_ed25519
from nixops_operator.step import Step
from nixops_operator.world import Policy, World
from unit.builders import NOON

PERIOD = timedelta(seconds=30)
WEB = Key(Kind.MACHINE, "default", "shop-web")
SHOP = Key(Kind.DEPLOYMENT, "default", "shop")
SUBNET = "subnet-00000000000000001"
SPEC: dict[str, Any] = {
    "aws": {"region": "us-west-2", "credentials": {"secretRef": {"name": "aws"}}},
    "target": {"ec2": {"instanceType": "t3.small"}},
    "ssh": {"privateKeySecretRef": {"name": "client"}},
    "configuration": {"modules": [{"inline": "{ }"}]},
}


class Bench:
    """Both worlds, and what a pass uses of them. Made inside a running loop."""

    def __init__(self) -> None:
        self.kube = FakeKube(now=self.now)
        self.clouds = FakeClouds(now=self.now)
        self.ec2 = self.clouds.world()
        self.cache = Cache()
        self.client = generate_ed25519()
        self.kube.secrets["default", "aws"] = Secret({"accessKeyId": b"AKIDTEST", "secretAccessKey": b"secret"})
        self.kube.secrets["default", "client"] = Secret({names.SSH_PRIVATE_KEY: self.client.text.encode()})
        self.world = World(
            cluster_id=CLUSTER_ID,
            policy=Policy(NIXOS_OWNER, "nixos/25.11*", HostPolicy(), Folder(Path("/nixpkgs")), timedelta(minutes=30)),
            kube=cast("Any", self.kube),
            nix=cast("Any", None),
            cache=self.cache,
            clouds=CloudInformers(cast("Any", self.clouds), PERIOD / 3, PERIOD, lambda key: None),
            hosts=cast("Any", None),
            jobs=cast("Any", None),
            reads=Reads(cast("Any", self.kube), PERIOD),
            wake=lambda key: None,
            now=self.now,
            digest_key=b"for tests",
        )

    def now(self) -> datetime:
        return NOON + timedelta(seconds=asyncio.get_running_loop().time())

    # --- the objects ----------------------------------------------------------------------------------------------

    def deployment(self, **spec: Any) -> Body:
        """A NixDeployment that has our machine for its own from now on."""
        body = self.kube.apply({"kind": "NixDeployment", "metadata": _named(SHOP), "spec": spec})
        self.cache.put(SHOP, body)
        return body

    def machine(self, status: Mapping[str, Any] | None = None, *, owner: Body | None = None, **spec: Any) -> Body:
        """kubectl apply of our machine, whose account is recorded."""
        metadata = _named(WEB) | {"finalizers": [names.FINALIZER]}
        if owner is not None:
            metadata["labels"] = {names.MACHINE_LABEL: "web"}
            metadata["ownerReferences"] = [
                {
                    "apiVersion": "nixops.dev/v1alpha1",
                    "kind": "NixDeployment",
                    "name": SHOP.name,
                    "uid": owner["metadata"]["uid"],
                    "controller": True,
                }
            ]
        self.kube.apply({"kind": "NixMachine", "metadata": metadata, "spec": SPEC | spec})
        return self.tell({"accountId": self.ec2.account, **(status or {})})

    def tell(self, status: Mapping[str, Any]) -> Body:
        """Have this in the status."""
        body = self.kube.edit(WEB, lambda known: known.setdefault("status", {}).update(status))
        self.cache.put(WEB, body)
        return body

    def annotate(self, annotations: Mapping[str, str]) -> Body:
        """kubectl annotate."""
        return self.kube.edit(WEB, lambda body: body["metadata"].setdefault("annotations", {}).update(annotations))

    def body(self) -> Body:
        found = self.kube.body(WEB)
        assert found is not None
        return found

    def read(self) -> Desired | Leaving:
        body = self.body()
        return read_machine(body, has_owner=bool(body["metadata"].get("ownerReferences")))

    # --- EC2 ------------------------------------------------------------------------------------------------------

    def key_pair(self, key: PrivateKey, uid: str, entry: str = "main") -> str:
        """A key pair of that entry, as a deployment imports it; its name."""
        name = names.key_pair_name(CLUSTER_ID, uid, entry, key.public)
        tags = names.key_pair_tags(CLUSTER_ID, "default", SHOP.name, uid, entry, key.public)
        self.ec2.key_pairs[name] = KeyPair(f"key-{len(self.ec2.key_pairs)}", name, key.public, tags)
        return name

    def group(self, uid: str, entry: str) -> str:
        """A security group of that entry, as a deployment makes it, without rules; its id."""
        tags = names.entry_tags(CLUSTER_ID, "default", SHOP.name, uid, entry)
        group_id = f"sg-of-{uid}-{entry}"
        self.ec2.security_groups[group_id] = SecurityGroup(group_id, f"{uid}-{entry}", "", DEFAULT_VPC, tags, ())
        return group_id

    async def instance(self, token: str = "token-1", **request: Any) -> str:
        """A running instance with our machine's tags."""
        uid = self.body()["metadata"]["uid"]
        asked = {
            "image_id": NIXOS_IMAGE,
            "instance_type": "t3.small",
            "subnet_id": SUBNET,
            "user_data": "",
            "tags": names.instance_tags(CLUSTER_ID, "default", WEB.name, uid, 1, {}),
        }
        found = await self.ec2.run_instances(LaunchRequest(**(asked | request)), token)
        self.ec2.set_state(found, InstanceState.RUNNING)
        return found

    # --- what a pass does -----------------------------------------------------------------------------------------

    async def seen(self) -> ObservedCloud:
        """EC2 as a pass sees it once everything that it asks about is answered."""
        desired = self.read()

        async def look() -> ObservedCloud:
            if isinstance(desired, Leaving):
                return await observe_cloud.observe_leaving(desired, self.world)
            ec2 = desired.spec.target.ec2
            assert ec2 is not None
            return await observe_cloud.observe(desired, ec2, self.world)

        return await answered(look, lambda found: (found.error, found.declared_error, found.addresses.error))

    async def take(self, step: Step, known: Desired | Leaving | None = None, body: Body | None = None) -> Body:
        """Carry the step out, as a pass does; one that began with an earlier object, if that is given."""
        body = await apply(step, known or self.read(), body or self.body(), self.world)
        self.cache.put(WEB, body)
        return body


async def answered(look: Callable[[], Any], errors: Callable[[Any], tuple[OperatorError | None, ...]]) -> Any:
    """The first answer that is more than "not yet"."""
    for _ in range(20):
        found = await look()
        if not any(isinstance(error, NotYet) for error in errors(found)):
            return found
        await asyncio.sleep(1)
    raise AssertionError(f"still not answered: {errors(found)}")


def _named(key: Key) -> dict[str, Any]:
    return {"namespace": key.namespace, "name": key.name}
