"""The evaluation of one machine among others: it is given what it reads, and no more."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast

import pytest

from nixops_operator.errors import EvaluationFailed, UnknownFact
from nixops_operator.facts.kube import Key, Kind
from nixops_operator.facts.nix import Evaluation, EvaluationRequest, Module, Source, Waiting
from nixops_operator.jobs import Done, Failed, Jobs, JobState
from nixops_operator.machine import jobs, steps
from nixops_operator.shared_facts import DeploymentFacts, MachineFacts, SharedFacts
from unit.builders import DRV, EVALUATE, INPUT, NEW, UID, host_machine

SHOP = Key(Kind.DEPLOYMENT, "default", "shop")
OTHERS = ("cache", "db")
ALONE = replace(INPUT, files={"nixpkgs/default.nix": b""})
SOURCE = Source("/nix/store/cis058pb1jb7k89f7d41lqbwh6n3ji6d-source", "sha256-source")


class Nix:
    """Reads the facts at these paths, in order. `catches`: as builtins.tryEval does."""

    public_key = "test-1:key"

    def __init__(self, *reads: str, catches: bool = False, fails: bool = False) -> None:
        self.reads, self.catches, self.fails = reads, catches, fails
        self.given: list[list[str]] = []  # names of the machines that each evaluation was given

    async def add_tree(self, files: Any) -> Source:
        return SOURCE

    async def evaluate(self, request: EvaluationRequest) -> Evaluation:
        self.given.append(sorted(request.facts.peers))
        told = request.facts.told(self.reads)
        for place, path in enumerate(self.reads):
            if told[path] is None and not self.catches:
                raise UnknownFact(path, request.facts.told(self.reads[: place + 1]))
        if self.fails:
            raise EvaluationFailed("web.nix:1:1: no", told)
        return Evaluation(DRV, NEW, told=told)


def outcome(nix: Nix, text: str = "{ }", others: Iterable[str] = OTHERS) -> JobState:
    """How the job of `web` ends."""

    async def test() -> JobState:
        facts = SharedFacts()
        machines = {name: Key(Kind.MACHINE, "default", name) for name in (*others, "web")}
        facts.tell_deployment(SHOP, DeploymentFacts(UID, machines, {"nodes": "[]"}))
        for name in others:
            facts.tell_machine(machines[name], MachineFacts(name, UID, {}, replace(ALONE, name=name), name))
        desired = replace(host_machine(), deployment="shop", deployment_uid=UID)
        ended = asyncio.Event()
        world: Any = type("World", (), {})()
        world.nix, world.facts = nix, facts
        world.jobs = Jobs({}, lambda _: ended.set())
        world.cache = type("Cache", (), {"get": lambda _, key: {"metadata": {"uid": UID}}})()
        given = replace(ALONE, modules=(Module("modules[0]", text),))
        jobs.start_job(steps.Evaluate(EVALUATE, given), desired, world)
        await ended.wait()
        return world.jobs.states(desired.key)[EVALUATE]

    return asyncio.run(test())


def test_what_reads_nothing_is_evaluated_once_and_given_nothing():
    nix = Nix()
    assert outcome(nix) == Done(Evaluation(DRV, NEW))
    assert nix.given == [[]]


def test_a_machine_that_the_text_names_is_given_at_once():
    nix = Nix("nodes.db")
    ended = outcome(nix, "{ nodes, ... }: { x = nodes.db.config.y; z = resources.machines.nobody; }")
    assert ended == Done(Evaluation(DRV, NEW, told={"nodes.db": "db"}))
    assert nix.given == [["db"]]


def test_what_is_read_unforeseen_costs_one_evaluation_more():
    nix = Nix("nodes", "nodes.db", "nodes.cache")
    assert outcome(nix) == Done(Evaluation(DRV, NEW, told={"nodes": "[]", "nodes.db": "db", "nodes.cache": "cache"}))
    assert nix.given == [[], ["cache", "db"]]


@pytest.mark.parametrize("fails", [False, True])
def test_a_configuration_that_catches_the_lack_is_not_believed(fails: bool):
    nix = Nix("nodes.db", catches=True, fails=fails)
    ended = outcome(nix)
    assert nix.given == [[], ["cache", "db"]]
    assert isinstance(ended, Failed if fails else Done)


def test_what_nobody_knows_is_waited_for():
    nix = Nix("nodes", "nodes.queue")
    ended = outcome(nix)
    assert ended == Done(Waiting("nodes.queue", {"nodes": "[]", "nodes.queue": None}))
    assert nix.given == [[]]


def test_a_failure_says_what_it_read():
    ended = outcome(Nix("nodes", fails=True))
    assert isinstance(ended, Failed)
    assert cast("EvaluationFailed", ended.error).told == {"nodes": "[]"}
