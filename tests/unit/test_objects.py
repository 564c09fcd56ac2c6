"""What both kinds read of an object alike."""

from __future__ import annotations

import pytest

from nixops_operator.objects import is_paused


@pytest.mark.parametrize(
    ("value", "pauses"),
    [
        pytest.param(None, False, id="no annotation"),
        pytest.param("false", False, id="false"),
        pytest.param("true", True, id="true"),
        pytest.param("True", True, id="as Python and YAML 1.1 write it"),
        pytest.param("yes", True, id="yes"),
        pytest.param("", True, id="nothing, as Cluster API's users write it"),
        pytest.param("until Monday", True, id="a word for colleagues"),
    ],
)
def test_what_pauses_an_object(value, pauses):
    """One that is not understood must not count as none: its author takes the machine for left alone."""
    body = {"metadata": {"annotations": {} if value is None else {"nixops.dev/paused": value}}}

    assert is_paused(body, suspend=False) is pauses
