"""A step that failed waits; nothing else does, and nothing else ends its wait."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, OperatorError, Retry, TurnKept
from nixops_operator.holds import BLOCKED_HOLD, FIRST_HOLD, FORGOTTEN, Holds
from nixops_operator.step import Identity, Step

FAILED = Retry(Reason.THROTTLED, "slow down")
REFUSED = Blocked(Reason.ACCESS_DENIED, "no")


@dataclass(frozen=True)
class Authorize(Step):
    group: str
    rules: tuple[int, ...] = ()

    @property
    def subject(self) -> Identity:
        return (self.group,)


@dataclass(frozen=True)
class Prepare(Step):
    @property
    def held_with(self) -> tuple[Identity, ...]:
        return (("Authorize", "bad"),)


def why(held: tuple[OperatorError, timedelta] | None) -> OperatorError | None:
    return held[0] if held is not None else None


def test_one_refused_step_never_holds_its_siblings():
    """Rules of a bad group were tried 32 times, and those of a good one never."""
    holds: Holds[str] = Holds()
    holds.failed("shop", 1, Authorize("bad"), REFUSED, 0)

    assert why(holds.held("shop", 1, Authorize("bad"), 1)) == REFUSED
    assert holds.held("shop", 1, Authorize("good"), 1) is None


def test_another_try_at_the_same_thing_waits_as_well():
    holds: Holds[str] = Holds()
    holds.failed("shop", 1, Authorize("bad", (80,)), REFUSED, 0)

    assert why(holds.held("shop", 1, Authorize("bad", (81,)), 1)) == REFUSED


def test_success_of_what_prepares_a_step_does_not_end_its_backoff():
    """A machine's group with a typo was launched every six seconds: writing the intent ended the launch's backoff."""
    holds: Holds[str] = Holds()
    first = holds.failed("shop", 1, Authorize("bad"), FAILED, 0)
    holds.succeeded("shop", 1, Prepare(), 0)
    second = holds.failed("shop", 1, Authorize("bad"), FAILED, 10)

    assert (first, second) == (FIRST_HOLD, 2 * FIRST_HOLD)


def test_what_only_prepares_a_refused_step_waits_with_it():
    holds: Holds[str] = Holds()
    holds.failed("shop", 1, Authorize("bad"), REFUSED, 0)

    assert why(holds.held("shop", 1, Prepare(), 1)) == REFUSED


def test_an_edit_ends_the_hold_and_success_the_backoff():
    holds: Holds[str] = Holds()
    holds.failed("shop", 1, Authorize("bad"), FAILED, 0)

    assert holds.held("shop", 2, Authorize("bad"), 1) is None
    holds.succeeded("shop", 1, Authorize("bad"), 1)
    assert holds.failed("shop", 1, Authorize("bad"), FAILED, 1) == FIRST_HOLD


def test_a_refusal_is_tried_again_slowly_and_advice_never_shortens_the_backoff():
    holds: Holds[str] = Holds()
    advised = Retry(Reason.INSUFFICIENT_CAPACITY, "full", timedelta(seconds=3))

    assert holds.failed("shop", 1, Authorize("a"), REFUSED, 0) == BLOCKED_HOLD
    waits = [holds.failed("shop", 1, Authorize("b"), advised, now) for now in range(4)]
    assert [wait.total_seconds() for wait in waits] == [3, 4, 8, 16]


def test_objects_do_not_share_holds():
    holds: Holds[str] = Holds()
    holds.failed("shop", 1, Authorize("bad"), REFUSED, 0)

    assert holds.held("other", 1, Authorize("bad"), 1) is None
    holds.forget("shop")
    assert holds.held("shop", 1, Authorize("bad"), 1) is None


def test_a_step_that_succeeded_and_comes_again_rests_longer_and_longer():
    """What EC2 does not show yet was asked for 125 times in a minute: each answer woke the next pass."""
    holds: Holds[str] = Holds()
    now, waits = 0.0, []
    for _ in range(5):
        assert not holds.is_resting("shop", 1, Authorize("web", (80,)), now)
        wait = holds.succeeded("shop", 1, Authorize("web", (80,)), now).total_seconds()
        assert holds.is_resting("shop", 1, Authorize("web", (80,)), now + wait - 1)
        waits.append(wait)
        now += wait

    assert waits == [2, 4, 8, 16, 32]


def test_another_step_of_that_identity_does_not_rest_nor_does_one_of_an_edit():
    holds: Holds[str] = Holds()
    holds.succeeded("shop", 1, Authorize("web", (80,)), 0)

    assert not holds.is_resting("shop", 1, Authorize("web", (81,)), 1)
    assert not holds.is_resting("shop", 2, Authorize("web", (80,)), 1)


def test_what_comes_again_on_another_occasion_does_not_wait_for_the_first():
    holds: Holds[str] = Holds()
    for now in (0, 2, 6):
        holds.succeeded("shop", 1, Authorize("web"), now)

    assert holds.succeeded("shop", 1, Authorize("web"), 14 + FORGOTTEN).total_seconds() == 2


def test_a_step_whose_turn_is_kept_comes_at_its_turn_however_often_it_was_told_to():
    holds: Holds[str] = Holds()
    turn = TurnKept(Reason.THROTTLED, "one after the other", timedelta(seconds=7))
    for now in (0, 10, 20):
        holds.failed("shop", 1, Authorize("bad"), turn, now)

    held = holds.held("shop", 1, Authorize("bad"), 25)
    assert held == (turn, timedelta(seconds=2))
    assert holds.held("shop", 1, Authorize("bad"), 27) is None
