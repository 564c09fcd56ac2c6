"""The world as a pass over a machine asks it, with notes of what was asked (rest.py).

Noted is what such a pass asks where nothing lies in EC2. What EC2 shows is looked at only as long as somebody asks, and
speaks of its own age; so whoever asks it, or the clock, gets passes and no rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from nixops_operator.facts.health import Check, CheckResult
from nixops_operator.facts.host import HostTarget
from nixops_operator.facts.kube import Key
from nixops_operator.facts.nix import Tree
from nixops_operator.informers.hosts import HostAnswer, HostInformer, HostInformers
from nixops_operator.rest import Notes, Noting
from nixops_operator.world import World

OF_CACHE = frozenset({"get", "owner_key", "in_namespace"})
OF_READS = frozenset({"secret", "contents", "config_map"})
OF_JOBS = frozenset({"states"})
OF_NIX = frozenset({"no_builder"})
OF_FACTS = frozenset({"told", "awaited"})
TELLING = frozenset({"tell_machine"})
"""Whoever tells what he told before changes nothing."""
OF_HOSTS = frozenset({"resolve"})
DROPPING = frozenset({"drop"})


def noted(world: World, notes: Notes) -> World:
    """The same world."""

    def now() -> datetime:
        notes.give_up()
        return world.now()

    def part(of: Any, questions: frozenset[str] = frozenset(), idle: frozenset[str] = frozenset()) -> Any:
        return Noting(of, notes, questions, idle)

    return _NotedWorld(
        cluster_id=world.cluster_id,
        policy=world.policy,
        digest_key=world.digest_key,
        wake=world.wake,
        kube=part(world.kube),
        clouds=part(world.clouds),
        answered_tokens=part(world.answered_tokens),
        nix=part(world.nix, OF_NIX),
        cache=part(world.cache, OF_CACHE),
        reads=part(world.reads, OF_READS),
        jobs=part(world.jobs, OF_JOBS),
        facts=part(world.facts, OF_FACTS, TELLING),
        hosts=cast(HostInformers, _NotedHosts(world.hosts, notes)),
        now=now,
        plain=world,
        notes=notes,
    )


@dataclass(frozen=True)
class _NotedWorld(World):
    plain: World | None = None
    notes: Notes | None = None

    def hash_of(self, tree: Tree) -> str | None:
        assert self.notes is not None  # noqa: S101 - given by `noted`
        return cast("str | None", self.notes.ask(self.plain, "hash_of", tree))


class _NotedHosts(Noting):
    def __init__(self, hosts: HostInformers, notes: Notes) -> None:
        super().__init__(hosts, notes, OF_HOSTS, DROPPING)

    def watch(self, key: Key, target: HostTarget) -> HostInformer:
        return cast(HostInformer, _NotedHost(self._notes.ask(self._part, "watch", key, target), self._notes))


class _NotedHost(Noting):
    """One machine's look."""

    def __init__(self, look: HostInformer, notes: Notes) -> None:
        super().__init__(look, notes, frozenset({"activation_log"}), frozenset({"target", "end_health"}))

    @property
    def answer(self) -> HostAnswer:
        """Whether it is news is asked again: free space differs each time."""
        self._notes.ask(self._part, "news")
        return cast(HostAnswer, self._part.answer)

    def health(self, subject: str, checks: tuple[Check, ...]) -> tuple[CheckResult, ...]:
        return cast("tuple[CheckResult, ...]", self._notes.ask(self._part, "health", subject, checks))
