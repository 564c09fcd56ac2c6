"""Objects at rest: a look at one need not be a pass, as long as a pass could find nothing new.

    pass ── asks the world, which takes notes ──► Notes: questions and answers, in order
      │ nothing done, nothing written, nothing due before REST is over, and all that it asked can be asked again
      ▼
    Rest ◄── a look, once a resync: the same questions, in the same order, are answered as they were

A pass is a function of its object, of the answers that it gets, and of the time. With the same object and the same
answers so far it asks the next question, too; so the first answer that differs is found by asking on, and there the
rest ends. What wakes an object ends it without being asked, and only a pass that nobody woke begins one. No rest is
longer than REST, so that an answer of which nobody took note hides nothing for longer.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, NamedTuple, TypeVar

from nixops_operator.errors import OperatorError
from nixops_operator.facts.kube import Body
from nixops_operator.planning import Plan
from nixops_operator.verdict import Outcome

K = TypeVar("K")

REST = timedelta(minutes=10)
_SETTLED = frozenset(
    {
        Outcome.IN_SYNC,
        Outcome.REPORTED,
        Outcome.UNHEALTHY,
        Outcome.STALLED,
        Outcome.DRIFT_REPORTED,
        Outcome.SUSPENDED,
    }
)


class _Note(NamedTuple):
    """One question that was answered."""

    part: Any
    question: str
    arguments: tuple[Any, ...]
    answer: Any


class Notes:
    """What one pass has asked."""

    def __init__(self) -> None:
        self._notes: list[_Note] = []
        self.has_all = True
        """Whether everything that was asked can be asked again."""

    def give_up(self) -> None:
        """Something was asked, or done, that cannot be repeated, or was not answered."""
        self.has_all = False

    def ask(self, part: Any, question: str, *arguments: Any) -> Any:
        """The part's answer, noted; an awaitable one once it is there. Raises what the part raises."""
        try:
            answer = getattr(part, question)(*arguments)
        except BaseException:
            self.give_up()
            raise
        if inspect.isawaitable(answer):
            return self._awaited(answer, part, question, arguments)
        self._notes.append(_Note(part, question, arguments, answer))
        return answer

    async def _awaited(self, answer: Awaitable[Any], part: Any, question: str, arguments: tuple[Any, ...]) -> Any:
        try:
            found = await answer
        except BaseException:
            self.give_up()
            raise
        self._notes.append(_Note(part, question, arguments, found))
        return found

    async def hold(self) -> bool:
        """Whether everything is answered now as it was then. To be asked only of notes that have all."""
        for note in self._notes:
            try:
                answer = getattr(note.part, note.question)(*note.arguments)
                found = await answer if inspect.isawaitable(answer) else answer
            except OperatorError:
                return False
            if found is not note.answer and found != note.answer:
                return False
        return True


class Noting:
    """A part of the world, of which notes tell what it was asked. `questions`: methods whose answers depend on nothing
    but the world; `idle`: those that do nothing when they are repeated. Whatever else is asked of it cannot be asked
    again."""

    def __init__(
        self, part: Any, notes: Notes, questions: frozenset[str] = frozenset(), idle: frozenset[str] = frozenset()
    ) -> None:
        self._part = part
        self._notes = notes
        self._questions = questions
        self._idle = idle

    def __getattr__(self, name: str) -> Any:
        if name in self._questions:
            return lambda *arguments: self._notes.ask(self._part, name, *arguments)
        if name not in self._idle:
            self._notes.give_up()
        return getattr(self._part, name)

    def __contains__(self, one: object) -> bool:
        self._notes.give_up()
        return one in self._part


@dataclass(frozen=True)
class Rest:
    """What must stand for a look to be enough. `until`: aware UTC."""

    body: Body
    notes: Notes
    until: datetime

    async def goes_on(self, body: Body, now: datetime) -> bool:
        return body is self.body and now <= self.until and await self.notes.hold()


def is_settled(plan: Plan, at_the_end: Plan) -> bool:
    """Whether there is nothing to be done, now and, if nothing but the time changes, until the rest is over. Pure."""
    verdict = plan.verdict
    is_idle = verdict.outcome in _SETTLED and not plan.steps and verdict.look_again is None
    return is_idle and at_the_end == plan


class Rests(Generic[K]):
    """Which objects are at rest."""

    def __init__(self) -> None:
        self._rests: dict[K, Rest] = {}

    def begin(self, key: K, rest: Rest) -> None:
        self._rests[key] = rest

    def end(self, key: K) -> None:
        self._rests.pop(key, None)

    async def goes_on(self, key: K, body: Body, now: datetime) -> bool:
        """Whether a look is enough."""
        rest = self._rests.get(key)
        return rest is not None and await rest.goes_on(body, now)
