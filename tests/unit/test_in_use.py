"""The Secret with AWS credentials: held while something may exist that was made with it, released by whoever needs it
last, and by nobody before."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, cast

import pytest

from fakes.kube import FakeKube, Secret
from nixops_operator import in_use
from nixops_operator.api.reasons import Reason
from nixops_operator.cache import Cache
from nixops_operator.controllers import DeploymentController, MachineController
from nixops_operator.errors import Blocked, Conflict
from nixops_operator.facts.kube import Body, Key, Kind
from nixops_operator.in_use import GiveUpSecret, HoldSecret, RecordHeld, ReleaseSecret, SeenSecret
from nixops_operator.machine.observed import Observed
from nixops_operator.names import FINALIZER, IN_USE_FINALIZER
from nixops_operator.planning import Finding, Plan
from nixops_operator.reads import Reads
from nixops_operator.reconcile import Reconciler
from nixops_operator.verdict import Outcome
from nixops_operator.workqueue import WorkQueue
from nixops_operator.world import World
from unit.builders import ACCOUNT, NOON, cloud, ec2_machine, host, instance, launch, planned, seen
from unit.fake_time import run

AWS = SeenSecret("aws")
HELD = SeenSecret("aws", is_held=True)


def of(held: tuple[str, ...]) -> dict[str, Any]:
    return {"heldSecrets": list(held)} if held else {}


def minutes_ago(minutes: float, **fields: Any) -> SeenSecret:
    return SeenSecret("aws", deleted_at=NOON - timedelta(minutes=minutes), **fields)


@pytest.mark.parametrize(
    ("held", "secret", "taken"),
    [
        pytest.param((), AWS, (RecordHeld(("aws",)), HoldSecret("aws")), id="written down before it is held"),
        pytest.param((), HELD, (RecordHeld(("aws",)), HoldSecret("aws")), id="held for another object: for us, too"),
        pytest.param(("aws",), AWS, (HoldSecret("aws"),), id="made anew, or the finalizer was taken off by hand"),
        pytest.param(("aws",), HELD, (), id="held"),
        pytest.param((), None, (), id="no account, or no Secret"),
        pytest.param(("old",), AWS, (RecordHeld(("old", "aws")), HoldSecret("aws")), id="another one is named now"),
        pytest.param(("a", "b", "c"), AWS, (), id="no room but for the way out: first the others are released"),
        pytest.param(("aws",), minutes_ago(9), (), id="in deletion, and not held: nothing can be done"),
        pytest.param(("aws",), minutes_ago(0.5, is_held=True), (), id="in deletion since a moment ago"),
        pytest.param(("aws",), minutes_ago(1, is_held=True), (GiveUpSecret("aws"),), id="deleted to be made anew"),
        pytest.param(
            ("aws",), minutes_ago(9, is_held=True, is_needed_to_leave=True), (), id="in deletion with objects: kept"
        ),
    ],
)
def test_what_is_done_about_the_secret_that_the_spec_names(held, secret, taken):
    found = in_use.kept(ec2_machine(of(held)), replace(seen(cloud()), secret=secret), NOON)
    assert (found.steps if found is not None else ()) == taken


def test_a_secret_that_is_deleted_alone_is_looked_at_again_when_its_minute_is_over():
    found = in_use.kept(ec2_machine(of(("aws",))), replace(seen(), secret=minutes_ago(0.25, is_held=True)), NOON)
    assert found is not None
    assert found.look_again == timedelta(seconds=45)


@pytest.mark.parametrize(
    ("held", "secret", "taken"),
    [
        pytest.param(("aws",), HELD, (), id="one, and it is named"),
        pytest.param(("old", "aws"), HELD, (ReleaseSecret("old"), RecordHeld(("aws",))), id="one is named no more"),
        pytest.param(
            ("a", "b", "c"),
            AWS,
            (ReleaseSecret("a"), ReleaseSecret("b"), ReleaseSecret("c"), RecordHeld(())),
            id="many",
        ),
        pytest.param(("old",), None, (), id="what is named now does not exist: the old one may be named again"),
    ],
)
def test_what_is_done_about_secrets_that_the_spec_named_before(held, secret, taken):
    found = in_use.others_released(ec2_machine(of(held)), replace(seen(cloud()), secret=secret), NOON)
    assert (found.steps if found is not None else ()) == taken


def _complete(secret: SeenSecret, **cloud_fields: Any) -> Observed:
    return replace(seen(cloud(instance(), **cloud_fields), host()), secret=secret)


def test_the_secret_is_held_before_anything_is_launched_with_it():
    taken = planned(ec2_machine(), replace(seen(cloud()), secret=AWS)).steps
    assert [type(step).__name__ for step in taken] == ["RecordHeld", "HoldSecret", "RecordLaunch"]


def test_the_former_secret_is_kept_until_ec2_takes_the_new_one():
    machine = ec2_machine(of(("old", "aws")) | launch(instance="i-1"))
    refused = planned(machine, _complete(HELD, error=Blocked(Reason.AUTH_FAILURE, "no")))
    assert ReleaseSecret("old") not in refused.steps
    assert ReleaseSecret("old") in planned(machine, _complete(HELD)).steps


def test_a_suspended_machine_holds_its_secret_too():
    taken = planned(ec2_machine(suspend=True), replace(seen(cloud()), secret=AWS)).steps
    assert taken == (RecordHeld(("aws",)), HoldSecret("aws"))


# --- in a namespace -----------------------------------------------------------------------------------------------


@dataclass
class Place:
    """A namespace with objects that are known, and the Secret `aws`."""

    kube: FakeKube = field(default_factory=lambda: FakeKube(now=lambda: NOON))
    cache: Cache = field(default_factory=Cache)

    def __post_init__(self) -> None:
        self.kube.secrets["default", "aws"] = Secret({"a": b"1"}, finalizers=(IN_USE_FINALIZER,))
        self.world = cast(
            World,
            replace(
                World(*[cast(Any, None)] * 12),
                kube=cast(Any, self.kube),
                cache=self.cache,
                reads=Reads(cast(Any, self.kube), timedelta(minutes=1)),
                now=lambda: NOON,
            ),
        )

    def add(
        self, name: str, *, account: str | None = ACCOUNT, secret: str = "aws", leaving: bool = True, **status: Any
    ) -> Body:
        """A machine whose finalizer is on."""
        spec = {
            "aws": {"region": "us-west-2", "credentials": {"secretRef": {"name": secret}}},
            "target": {"ec2": {"instanceType": "t3.small"}},
            "ssh": {"privateKeySecretRef": {"name": "client"}},
            "configuration": {"modules": [{"inline": "{ }"}]},
        }
        metadata = {"namespace": "default", "name": name, "finalizers": [FINALIZER]}
        self.kube.apply({"kind": "NixMachine", "metadata": metadata, "spec": spec})
        key = Key(Kind.MACHINE, "default", name)
        told = {"accountId": account, **status} if account is not None else status
        self.kube.edit(key, lambda body: body.update(status=told))
        if leaving:
            self.kube.delete(key)
        body = self.kube.body(key)
        assert body is not None
        self.cache.put(key, body)
        return body

    async def leave(self, body: Body) -> Body:
        controller = MachineController(self.world)
        return await controller.leave(controller.desired(body), body)

    @property
    def is_held(self) -> bool:
        return IN_USE_FINALIZER in self.kube.secrets["default", "aws"].finalizers


def test_the_last_object_releases_the_secret():
    async def test() -> None:
        place = Place()
        body = await place.leave(place.add("web", heldSecrets=["aws"]))
        assert not place.is_held
        assert "accountId" not in body["status"]

    run(test())


@pytest.mark.parametrize(
    ("other", "is_held"),
    [
        pytest.param({"leaving": False}, True, id="another one lives"),
        pytest.param({}, True, id="another one is on its way out"),
        pytest.param({"account": None}, False, id="another one has made nothing"),
        pytest.param({"secret": "other"}, False, id="another one uses another Secret"),
    ],
)
def test_the_secret_is_released_when_no_other_object_needs_it(other, is_held):
    async def test() -> None:
        place = Place()
        place.add("db", **other)
        await place.leave(place.add("web", heldSecrets=["aws"]))
        assert place.is_held == is_held

    run(test())


def test_two_last_objects_that_go_at_once_leave_no_hold():
    async def test() -> None:
        place = Place()
        both = [place.add(name, heldSecrets=["aws"]) for name in ("db", "web")]
        results = await asyncio.gather(*map(place.leave, both), return_exceptions=True)
        assert not place.is_held
        assert all(isinstance(one, Conflict) or "accountId" not in one["status"] for one in results)  # type: ignore[index]

    run(test())


def test_what_was_written_down_in_an_earlier_life_is_released_without_an_account():
    """The process died after it had written that nothing is left, and before the release."""

    async def test() -> None:
        place = Place()
        await place.leave(place.add("web", account=None, heldSecrets=["aws"]))
        assert not place.is_held

    run(test())


def test_an_object_that_never_wrote_down_its_hold_releases_what_others_left_to_it():
    async def test() -> None:
        place = Place()
        body = await place.leave(place.add("web"))
        assert not place.is_held
        assert body["status"]["heldSecrets"] == ["aws"], "a crash before the release must not lose it"

    run(test())


def test_an_object_that_made_nothing_reads_no_secret():
    """Its deletion needs no right to read Secrets."""

    async def test() -> None:
        place = Place()
        await place.leave(place.add("web", account=None))
        assert place.kube.effects.of("read_secret") == []
        assert place.is_held

    run(test())


def test_a_secret_that_has_gone_is_released():
    async def test() -> None:
        place = Place()
        body = place.add("web", heldSecrets=["aws"])
        del place.kube.secrets["default", "aws"]
        await place.leave(body)

    run(test())


def test_a_hold_that_somebody_elses_write_came_before_ends_no_pass():
    async def test() -> None:
        place = Place()
        place.kube.secrets["default", "aws"].finalizers = ()
        body = place.add("web", leaving=False)
        desired = cast(Any, MachineController(place.world).desired(body))
        place.kube.effects.next_error["kube.put_secret"] = Conflict("changed meanwhile")
        await in_use.apply(HoldSecret("aws"), desired, body, place.world)
        assert not place.is_held
        await in_use.apply(HoldSecret("aws"), desired, body, place.world)
        assert place.is_held

    run(test())


@pytest.mark.parametrize("leaving", [pytest.param(True, id="on its way out"), pytest.param(False, id="living")])
def test_a_secret_in_deletion_is_needed_by_objects_that_go(leaving):
    async def test() -> None:
        place = Place()
        place.add("db", leaving=leaving)
        body = place.add("web", leaving=False)
        place.kube.delete_secret_as_user("default", "aws")
        desired = cast(Any, MachineController(place.world).desired(body))
        secret = await in_use.observe(desired, desired.spec.aws, place.world)
        assert secret == SeenSecret("aws", is_held=True, deleted_at=NOON, is_needed_to_leave=leaving)

    run(test())


def test_a_secret_that_cannot_be_released_is_told_of_and_the_object_stays():
    """Its finalizer goes last; the condition says what keeps it."""

    @dataclass
    class Gone:
        world: World

        def __getattr__(self, name: str) -> Any:
            return getattr(MachineController(self.world), name)

        async def observe(self, desired: Any) -> None: ...

        def plan(self, desired: Any, observed: None, now: Any) -> Plan:
            return Plan((Finding(Outcome.GONE),))

        async def forget(self, key: Key) -> None: ...

    async def test() -> None:
        place = Place()
        key = Key(Kind.MACHINE, "default", "web")
        place.add("web", heldSecrets=["aws"])
        queue: WorkQueue[Key] = WorkQueue(lambda key: key.kind, random.Random(1))
        both = {Kind.MACHINE: Gone(place.world), Kind.DEPLOYMENT: DeploymentController(place.world)}
        kube = cast(Any, place.kube)
        reconciler = Reconciler(kube, place.cache, queue, cast(Any, both), timedelta(minutes=5), lambda: NOON)
        place.kube.effects.standing_error["read_secret"] = Blocked(Reason.ACCESS_DENIED, "get secret: not allowed")
        await reconciler.reconcile(key)
        body = place.kube.body(key)
        assert body is not None
        stalled = [one for one in body["status"]["conditions"] if one["type"] == "Stalled"]
        assert [one["message"] for one in stalled] == ["get secret: not allowed"]
        place.kube.effects.standing_error.clear()
        await reconciler.reconcile(key)
        assert place.kube.body(key) is None
        assert not place.is_held

    run(test())


# --- without the Secret -------------------------------------------------------------------------------------------


def test_an_identity_whose_secret_has_gone_serves_a_deletion_and_nothing_else():
    async def test() -> None:
        place = Place()
        place.kube.secrets["default", "aws"] = Secret({"accessKeyId": b"AKIDTEST", "secretAccessKey": b"secret"})
        desired = cast(Any, MachineController(place.world).desired(place.add("web", leaving=False)))
        known = await place.world.identity("default", desired.spec.aws)
        del place.kube.secrets["default", "aws"]
        place.world.reads.forget_secret("default", "aws")
        with pytest.raises(Blocked) as refused:
            await place.world.identity("default", desired.spec.aws)
        assert refused.value.reason is Reason.SECRET_NOT_FOUND
        assert await place.world.identity("default", desired.spec.aws, is_leaving=True) == known

    run(test())
