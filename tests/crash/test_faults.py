"""Refusals, deaths and other people's hands, each a whole life of a deployment."""

from __future__ import annotations

import pytest

from crash.faults import FAULTS


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_ends_as_it_should(fault):
    fault()
