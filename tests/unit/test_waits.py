"""A wait lasts as long as it says, whatever a clock once said."""

from __future__ import annotations

from datetime import timedelta

import pytest

from nixops_operator import waits
from unit.builders import NOON

SPAN = timedelta(minutes=10)


@pytest.mark.parametrize(
    ("ago", "left"),
    [
        pytest.param(timedelta(0), SPAN, id="begun now"),
        pytest.param(timedelta(minutes=4), timedelta(minutes=6), id="under way"),
        pytest.param(SPAN, None, id="over"),
        pytest.param(timedelta(days=300), None, id="long over"),
        pytest.param(timedelta(seconds=-2), SPAN + timedelta(seconds=2), id="by a clock that is a little ahead"),
        pytest.param(timedelta(days=-1), None, id="by a clock that was a day ahead: over"),
    ],
)
def test_what_is_left_of_a_wait(ago: timedelta, left: timedelta | None):
    assert waits.left(NOON - ago, SPAN, NOON) == left
