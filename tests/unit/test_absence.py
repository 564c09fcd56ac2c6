"""What EC2 does not show is gone only by this rule; whatever is missing of it, the thing may exist."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from nixops_operator.absence import NOTED, SPAN, VISIBLE_AFTER, is_gone, is_noted

CALL = datetime(2026, 11, 22, 12, tzinfo=UTC)
LATE = CALL + VISIBLE_AFTER + NOTED
A_BIT = timedelta(milliseconds=1)


@pytest.mark.parametrize(
    ("last_call", "looked_at", "missing_for", "expected"),
    [
        pytest.param(CALL, LATE, SPAN, True, id="looked late enough, missed for long enough"),
        pytest.param(CALL, None, SPAN, False, id="never looked"),
        pytest.param(CALL, LATE, None, False, id="the newest look shows it"),
        pytest.param(CALL, LATE, timedelta(0), False, id="one empty look"),
        pytest.param(CALL, LATE, SPAN - A_BIT, False, id="missed for too short a time"),
        pytest.param(CALL, LATE - A_BIT, timedelta(hours=1), False, id="the look began too early"),
        pytest.param(CALL, CALL + VISIBLE_AFTER, timedelta(hours=1), False, id="the note may be a minute late"),
        pytest.param(CALL, CALL - timedelta(hours=1), timedelta(days=1), False, id="looked before the call only"),
        pytest.param(
            CALL + timedelta(minutes=6), LATE, timedelta(hours=1), False, id="a repeat counts, not the first call"
        ),
    ],
)
def test_when_something_is_gone(last_call, looked_at, missing_for, expected):
    assert is_gone(last_call, looked_at, missing_for) is expected


@pytest.mark.parametrize(
    ("last_call", "expected"),
    [
        pytest.param(None, False, id="nothing is noted"),
        pytest.param(CALL, True, id="noted just now"),
        pytest.param(CALL - NOTED + A_BIT, True, id="within a minute"),
        pytest.param(CALL - NOTED, False, id="a minute ago"),
    ],
)
def test_which_calls_a_note_covers(last_call, expected):
    assert is_noted(last_call, CALL) is expected
