"""Plans: a workload, what a user does in the middle of it, where the process dies, and how late EC2 shows things.

    create/ec2.run_instances.1/not-recorded~4-8         killed after the first RunInstances, before its id is recorded
    create+delete@ec2.run_instances.1/before~60-300     kubectl delete just before RunInstances; killed there, too
    create+delete@ec2.run_instances.1~0-0               the same without a death

A workload runs to its end, whatever comes in between; then its outcome is judged. The whole matrix is what `everything`
lists; `make test` runs the part that `chosen` picks, always the same.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from crash.bench import HOWS, LAGS, LONGEST_LAG, SHORT_LAG, Cut, Lags, Worlds
from crash.changes import CHANGES
from crash.workloads import WORKLOADS, Reference, play_interrupted, reference

TOLD = frozenset(
    {"kube.post_event", "kube.patch_status", "host.connect", "nix.add_source", "nix.evaluate", "nix.build"}
)
"""Effects that leave nothing behind which a later pass could stumble over, and come by the dozen."""


@dataclass(frozen=True)
class Plan:
    """See the module. `cut` without `change`: anywhere; with it: at the very call before which the change comes."""

    workload: str
    effect: str
    number: int
    how: str | None
    change: str | None
    lags: Lags

    def __str__(self) -> str:
        place = f"{self.effect}.{self.number}"
        what = f"+{self.change}@{place}" if self.change else f"/{place}"
        how = f"/{self.how.replace(' ', '-')}" if self.how else ""
        return f"{self.workload}{what}{how}~{self.lags}"

    def wanted(self) -> Reference:
        """The life whose end this plan's is compared with."""
        return CHANGES[self.change].wanted() if self.change is not None else reference(self.workload)

    def run(self) -> None:
        """Raises AssertionError, or HotLoopError, where something is broken, or ends otherwise than it should."""
        course = Course(self)
        course.judge(play_interrupted(self.workload, course.interrupt, self.lags))


class Course:
    """A plan on its way."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._met: list[object] = []  # once its place is reached, what the judgement has to know of that moment

    def interrupt(self, worlds: Worlds, effect: str, number: int) -> Cut | None:
        """See bench.Operator."""
        plan = self.plan
        if (effect, number) != (plan.effect, plan.number):
            return None
        self._met.append(CHANGES[plan.change].do(worlds) if plan.change is not None else None)
        return Cut(effect, number, plan.how) if plan.how is not None else None

    def judge(self, worlds: Worlds) -> None:
        """At its end. Raises AssertionError."""
        plan = self.plan
        assert self._met, "the place was not met"
        if plan.change is not None:
            CHANGES[plan.change].judge(worlds, self._met[0])
            return
        end, wanted = worlds.end_state(), plan.wanted().end
        assert end == wanted, _difference(end, wanted)


_WRITTEN = re.compile(
    r"(?P<workload>[a-z]+)(\+(?P<change>[a-z_]+)@|/)(?P<effect>[a-z0-9]+\.[a-z_]+)\.(?P<number>\d+)"
    r"(/(?P<how>[a-z-]+))?~(?P<ids>\d+)-(?P<tags>\d+)"
)


def read(text: str) -> Plan:
    """What `str(plan)` gave. Raises ValueError."""
    found = _WRITTEN.fullmatch(text)
    how = (found["how"] or "").replace("-", " ") or None if found else None
    if found is None or found["workload"] not in WORKLOADS or found["change"] not in {None, *CHANGES}:
        raise ValueError(f"{text} is no plan; one is create+delete@ec2.run_instances.1/not-recorded~4-8")
    if how not in {None, *HOWS} or (how is None and found["change"] is None):
        raise ValueError(f"{text}: a process dies {', '.join(one.replace(' ', '-') for one in HOWS)}")
    lags = Lags(int(found["ids"]), int(found["tags"]))
    return Plan(found["workload"], found["effect"], int(found["number"]), how, found["change"], lags)


# --- the matrix ---------------------------------------------------------------------------------------------------


def cuts(workload: str, how: str) -> list[Plan]:
    """Every call of every effect of the workload, cut in that way; at most times as late as EC2 mostly is, and now and
    then later."""
    found = []
    for effect, number in _calls(workload, SHORT_LAG, TOLD):
        plan = Plan(workload, effect, number, how, None, SHORT_LAG)
        other = LAGS[_chance(plan) // 8 % len(LAGS)]
        is_later = _chance(plan) % 8 == 0 and (effect, number) in _calls(workload, other, frozenset())
        found.append(replace(plan, lags=other) if is_later else plan)
    return found


def interruptions(change: str, how: str | None, workload: str = "create") -> list[Plan]:
    """That change before every effect of the workload that leaves something behind; of a creation at every lag, of
    what comes later as late as EC2 mostly is and at the latest."""
    return [
        Plan(workload, effect, number, how, change, lags)
        for lags in (LAGS if workload == "create" else (SHORT_LAG, LONGEST_LAG))
        for effect, number in _calls(workload, lags, TOLD)
        if effect not in TOLD
    ]


@functools.cache
def _calls(workload: str, lags: Lags, told: frozenset[str]) -> tuple[tuple[str, int], ...]:
    """Effect and number of every call; of those that only tell, the first and the last."""
    return tuple(
        (effect, number)
        for effect, times in sorted(Counter(reference(workload, lags).trace).items())
        for number in (sorted({1, times}) if effect in told else range(1, times + 1))
    )


def everything() -> Iterator[Plan]:
    """The whole matrix."""
    for how in HOWS:
        for workload in WORKLOADS:
            yield from cuts(workload, how)
    for name, change in CHANGES.items():
        for chosen_how in change.hows:
            for workload in change.within:
                yield from interruptions(name, chosen_how, workload)


def in_any_order(plans: Iterable[Plan]) -> list[Plan]:
    """Always the same one, in which every part is a sample of the whole."""
    return sorted(plans, key=_chance)


def _chance(plan: object) -> int:
    """Any number, always the same for a plan."""
    return zlib.crc32(str(plan).encode())


def chosen(plans: Iterable[Plan], count: int) -> list[Plan]:
    """`count` of them, of each effect one before a second one of any: always the same ones."""
    left = in_any_order(plans)
    found: list[Plan] = []
    while left and len(found) < count:
        met: set[str] = set()
        for plan in tuple(left):
            if plan.effect not in met and len(found) < count:
                met.add(plan.effect)
                found.append(plan)
                left.remove(plan)
    return sorted(found, key=str)


def _difference(end: dict[str, object], wanted: dict[str, object]) -> str:
    return "; ".join(
        f"{part}: {end.get(part)!r} instead of {wanted.get(part)!r}"
        for part in sorted(end.keys() | wanted.keys())
        if end.get(part) != wanted.get(part)
    )
