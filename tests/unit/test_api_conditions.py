"""How wanted conditions replace those of a status."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from nixops_operator.api.conditions import Condition, Truth, find_condition, merge_conditions
from nixops_operator.api.reasons import ConditionType, Reason

NOON = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
NOON_TEXT, MORNING_TEXT = "2026-05-01T12:00:00Z", "2026-05-01T07:00:00Z"


NO_TIMES = ("2020-01-01T00:00:00x5z", "2020-01-01T00:00:00+99:99", "2020-01-01T00:00:00")
"""What somebody may have written; the API server takes all but the last."""


def condition(
    kind: ConditionType = ConditionType.READY, status: Truth = Truth.TRUE, message: str = "", generation: int = 1
) -> Condition:
    return Condition(kind, status, Reason.SUCCEEDED, message, generation)


def stored(status: str = "True", kind: str = "Ready") -> dict[str, object]:
    return {
        "type": kind,
        "status": status,
        "observedGeneration": 1,
        "reason": "Succeeded",
        "message": "",
        "lastTransitionTime": MORNING_TEXT,
    }


@pytest.mark.parametrize(
    ("previous", "wanted", "since"),
    [
        pytest.param([], condition(), NOON_TEXT, id="new"),
        pytest.param([stored()], condition(), MORNING_TEXT, id="unchanged"),
        pytest.param([stored()], condition(message="other", generation=2), MORNING_TEXT, id="message and generation"),
        pytest.param([stored("False")], condition(), NOON_TEXT, id="status changed"),
        *(
            pytest.param([stored() | {"lastTransitionTime": text}], condition(), NOON_TEXT, id=f"no time: {text}")
            for text in NO_TIMES
        ),
    ],
)
def test_the_time_moves_with_the_status_alone(previous: list[dict[str, object]], wanted: Condition, since: str) -> None:
    (merged,) = merge_conditions(previous, [wanted], NOON)

    assert merged["lastTransitionTime"] == since
    assert (merged["message"], merged["observedGeneration"]) == (wanted.message, wanted.observed_generation)


def test_the_order_does_not_depend_on_the_pass() -> None:
    kinds = [ConditionType.UP_TO_DATE, ConditionType.STALLED, ConditionType.REACHABLE, ConditionType.READY]

    merged = merge_conditions([], [condition(kind) for kind in kinds], NOON)

    assert [entry["type"] for entry in merged] == ["Ready", "Stalled", "Reachable", "UpToDate"]


def test_what_is_not_wanted_goes() -> None:
    assert merge_conditions([stored(kind="Stalled")], [], NOON) == []


@pytest.mark.parametrize("kind", [ConditionType.RECONCILING, ConditionType.STALLED, ConditionType.PAUSED])
def test_some_exist_only_while_true(kind: ConditionType) -> None:
    assert merge_conditions([], [condition(kind, Truth.FALSE)], NOON) == []
    assert len(merge_conditions([], [condition(kind)], NOON)) == 1


def test_merging_what_was_merged_changes_nothing() -> None:
    wanted = [condition(), condition(ConditionType.REACHABLE, Truth.FALSE)]
    first = merge_conditions([], wanted, NOON)

    assert merge_conditions(first, wanted, NOON.replace(hour=13)) == first


def test_a_message_stays_within_the_limit() -> None:
    (merged,) = merge_conditions([], [condition(message="x" * 2000)], NOON)

    assert len(merged["message"]) == 1024
    assert merged["message"].endswith("x…")


def test_a_condition_is_read_back() -> None:
    wanted = condition(ConditionType.REACHABLE, Truth.UNKNOWN, "no answer", 3)
    body = {
        "status": {
            "conditions": [{"type": "New", "status": "True", "reason": "?"}, *merge_conditions([], [wanted], NOON)]
        }
    }

    assert find_condition(body, ConditionType.REACHABLE) == wanted
    assert find_condition(body, ConditionType.READY) is None
    assert find_condition({}, ConditionType.READY) is None
