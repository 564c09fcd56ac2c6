"""Objects at rest: looks that need no pass, and what ends that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from benchmarks import fleet

from fakes.host import BASE_SYSTEM
from fakes.kube import Secret
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Retry
from nixops_operator.facts.kube import Body, Key, Kind
from nixops_operator.noted_world import noted
from nixops_operator.planning import Finding, Plan, Rules
from nixops_operator.rest import REST, Notes, Noting, Rest, is_settled
from nixops_operator.settings import Settings
from nixops_operator.shared_facts import MachineFacts, SharedFacts
from nixops_operator.step import Step
from nixops_operator.verdict import Outcome
from nixops_operator.world import World
from unit.builders import NOON
from unit.fake_time import run

WEB = Key(Kind.MACHINE, "default", "web")


# --- notes --------------------------------------------------------------------------------------------------------


@dataclass
class Part:
    """Answers by name."""

    answers: dict[str, Any] = field(default_factory=lambda: {"a": 1, "b": 2})
    asked: list[str] = field(default_factory=list)

    def now(self, name: str) -> Any:
        self.asked.append(name)
        if isinstance(self.answers[name], Exception):
            raise self.answers[name]
        return self.answers[name]

    async def soon(self, name: str) -> Any:
        await asyncio.sleep(0)
        return self.now(name)

    def change(self) -> None:
        """An effect."""

    def repeat(self) -> None:
        """An effect that is none the second time."""


def seen(part: Part) -> tuple[Notes, Any]:
    notes = Notes()
    return notes, Noting(part, notes, frozenset({"now", "soon"}), frozenset({"repeat"}))


async def asked(part: Part) -> Notes:
    """Notes of two questions."""
    notes, noting = seen(part)
    assert noting.now("a") == 1
    assert await noting.soon("b") == 2
    return notes


def test_the_same_questions_are_asked_in_the_same_order():
    part = Part()
    notes = run(asked(part))
    part.asked.clear()

    assert run(notes.hold())
    assert part.asked == ["a", "b"]


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("answer", [3, Retry(Reason.PROGRESSING_WITH_RETRY, "no answer now")])
def test_an_answer_that_differs_ends_it_and_nothing_below_it_is_asked(name: str, answer: object):
    part = Part()
    notes = run(asked(part))
    part.asked.clear()
    part.answers[name] = answer

    assert not run(notes.hold())
    assert part.asked[-1] == name


def test_what_cannot_be_asked_again_is_known():
    async def test() -> list[bool]:
        found = []
        for use in (
            lambda noting: noting.change(),
            lambda noting: noting.now("broken"),
            lambda noting: asyncio.create_task(noting.soon("broken")),
            lambda noting: noting.repeat(),
        ):
            part = Part({"broken": Retry(Reason.PROGRESSING_WITH_RETRY, "no answer")})
            notes, noting = seen(part)
            try:
                if (task := use(noting)) is not None:
                    await task
            except Retry:
                pass
            found.append(notes.has_all)
        return found

    assert run(test()) == [False, False, False, True]


# --- what rests, and how long -------------------------------------------------------------------------------------


class Do(Step):
    """Something."""


def plan_of(outcome: Outcome, **more: Any) -> Plan:
    return Plan((Finding(outcome, Reason.SUCCEEDED, "words", **more),))


RESTING = {
    Outcome.IN_SYNC,
    Outcome.REPORTED,
    Outcome.UNHEALTHY,
    Outcome.STALLED,
    Outcome.DRIFT_REPORTED,
    Outcome.SUSPENDED,
}


@pytest.mark.parametrize("outcome", Outcome)
def test_who_works_waits_or_goes_does_not_rest(outcome: Outcome):
    assert is_settled(plan_of(outcome), plan_of(outcome)) is (outcome in RESTING)


@pytest.mark.parametrize(
    ("plan", "at_the_end"),
    [
        pytest.param(
            plan_of(Outcome.IN_SYNC, steps=(Do(),)),
            plan_of(Outcome.IN_SYNC, steps=(Do(),)),
            id="something is to be done",
        ),
        pytest.param(
            plan_of(Outcome.IN_SYNC, look_again=timedelta(hours=1)),
            plan_of(Outcome.IN_SYNC, look_again=timedelta(hours=1)),
            id="it is to be looked at again",
        ),
        pytest.param(plan_of(Outcome.IN_SYNC), plan_of(Outcome.UNHEALTHY), id="a clock will be due by then"),
        pytest.param(
            plan_of(Outcome.STALLED),
            replace(plan_of(Outcome.STALLED), rules=Rules(deadline_passed=True)),
            id="a deadline will have passed by then",
        ),
    ],
)
def test_whoever_has_something_before_him_does_not_rest(plan: Plan, at_the_end: Plan):
    assert not is_settled(plan, at_the_end)


@pytest.mark.parametrize(
    ("is_same", "after", "expected"),
    [
        pytest.param(True, timedelta(minutes=5), True, id="the same object, in time"),
        pytest.param(True, REST + timedelta(seconds=1), False, id="too late"),
        pytest.param(False, timedelta(minutes=5), False, id="another version of the object"),
    ],
)
def test_how_long_a_rest_goes_on(is_same: bool, after: timedelta, expected: bool):
    body: Body = {"metadata": {"resourceVersion": "1"}}
    rest = Rest(body, Notes(), NOON + REST)

    assert run(rest.goes_on(body if is_same else dict(body), NOON + after)) is expected


# --- a machine ----------------------------------------------------------------------------------------------------


class CountedFacts(SharedFacts):
    """Each pass over a machine tells once."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def tell_machine(self, key: Key, facts: MachineFacts) -> frozenset[Key]:
        self.passes += 1
        return super().tell_machine(key, facts)


class Place(fleet.Fleet):
    """One machine on a given host, which uses all that such a machine can use; and an operator whose news can be lost:
    from then on its looks are all that it has."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.facts = CountedFacts()
        self.is_deaf = False
        self.add_secrets("default")
        self.machine = self.add_host("198.51.1.1")
        self.hosts.names["web.example.org"] = ("198.51.1.1",)
        self.kube.config_maps["default", "modules"] = {"web.nix": b"{ }"}
        self.kube.secrets["default", "password"] = Secret({"value": b"one"})

    def apply(self) -> None:
        body = fleet.given("default", "web", "web.example.org")
        module = {"configMapKeyRef": {"name": "modules", "key": "web.nix"}}
        body["spec"]["configuration"] = {"modules": [module]}
        body["spec"]["keys"] = [{"name": "password", "secretRef": {"name": "password", "key": "value"}}]
        body["spec"]["healthChecks"] = []
        self.kube.apply(body)

    def _world(self, chosen: Settings, cache: Any, queue: Any) -> World:
        place = self

        class Half:
            def add(self, key: Key) -> None:
                if not place.is_deaf:
                    queue.add(key)

        return replace(super()._world(chosen, cache, cast(Any, Half())), facts=self.facts)

    async def passes_within(self, seconds: float) -> int:
        before = self.facts.passes
        await asyncio.sleep(seconds)
        return self.facts.passes - before


RESYNC = Settings().resync_period.total_seconds()


async def at_rest(place: Place) -> None:
    """For a while; nothing is told any more."""
    place.apply()
    await place.until_ready([WEB])
    await asyncio.sleep(4 * RESYNC)
    place.is_deaf = True


def test_a_machine_at_rest_gets_a_pass_now_and_then(tmp_path: Path):
    async def test() -> tuple[int, int]:
        place = Place(tmp_path)
        async with place.running():
            await at_rest(place)
            assert place.machine.current_system != BASE_SYSTEM
            return await place.passes_within(3 * RESYNC), await place.passes_within(REST.total_seconds())

    first, more = run(test())
    assert first == 0
    assert 1 <= more <= 2


def changed_by_hand(place: Place) -> None:
    place.machine.current_system = place.machine.booted_system = BASE_SYSTEM


def another_module(place: Place) -> None:
    place.kube.config_maps["default", "modules"] = {"web.nix": b"{ services.nginx.enable = true; }"}


def another_password(place: Place) -> None:
    place.kube.secrets["default", "password"] = Secret({"value": b"two"})


def no_client_key(place: Place) -> None:
    del place.kube.secrets["default", "client"]


def another_address(place: Place) -> None:
    place.hosts.names["web.example.org"] = ("203.0.113.9",)


def no_builder(place: Place) -> None:
    place.nix.obstacles["x86_64-linux"] = "no builder works"


def silence(place: Place) -> None:
    place.machine.is_silent = True


@pytest.mark.parametrize(
    "change",
    [changed_by_hand, another_module, another_password, no_client_key, another_address, no_builder, silence],
)
def test_a_change_that_nobody_told_of_is_seen_by_a_look(tmp_path: Path, change: Callable[[Place], None]):
    async def test() -> int:
        place = Place(tmp_path)
        async with place.running():
            await at_rest(place)
            change(place)
            # A Secret is read every five minutes, a name every minute.
            return await place.passes_within((5 * 60 if change is no_client_key else RESYNC) + 1.5 * RESYNC)

    assert run(test()) >= 1


def test_free_space_that_goes_up_and_down_disturbs_no_rest(tmp_path: Path):
    async def test() -> int:
        place = Place(tmp_path)
        async with place.running():
            await at_rest(place)
            place.machine.free_bytes -= 1 << 20
            return await place.passes_within(2 * RESYNC)

    assert run(test()) == 0


@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(lambda world: world.now() is not None, id="what time it is"),
        pytest.param(lambda world: "a token" in world.answered_tokens, id="what EC2 has answered"),
        pytest.param(lambda world: world.clouds.view is not None, id="EC2"),
    ],
)
def test_whoever_asks_what_cannot_be_asked_again_is_answered_and_has_no_rest(
    tmp_path: Path, ask: Callable[[World], bool]
):
    async def test() -> bool:
        place, notes = Place(tmp_path), Notes()
        async with place.running() as world:
            world.answered_tokens.add("a token")
            assert ask(noted(world, notes)) is ask(world) is True
        return notes.has_all

    assert not run(test())


def test_a_machine_in_ec2_is_asked_about_in_every_pass(tmp_path: Path):
    """Its questions are asked of EC2 only as long as somebody reads the answers."""

    async def test() -> int:
        place = Place(tmp_path)
        async with place.running():
            place.kube.apply(fleet.deployment("default", "shop", 1))
            await place.until_ready([Key(Kind.DEPLOYMENT, "default", "shop")])
            await asyncio.sleep(4 * RESYNC)
            return await place.passes_within(5 * RESYNC)

    assert run(test()) >= 4


def test_of_every_part_of_the_world_notes_are_taken(tmp_path: Path):
    """A part that is added later must not be asked without them."""
    constant = {"cluster_id", "policy", "digest_key", "wake"}

    async def test() -> set[str]:
        place = Place(tmp_path)
        async with place.running() as world:
            taken = noted(world, Notes())
            return {one.name for one in fields(World) if getattr(taken, one.name) is getattr(world, one.name)}

    assert run(test()) == constant
