"""The one line of switch-to-configuration's output that a person needs first."""

import pytest

from nixops_operator.machine.activation_log import telling_line


@pytest.mark.parametrize(
    ("log", "line"),
    [
        pytest.param("", "", id="nothing was said"),
        pytest.param("stopping the following units: a.service\nsetting up /etc...\n", "", id="nothing of trouble"),
        pytest.param(
            "setting up /etc...\nwarning: the following units failed: web.service\nactivating the configuration...\n",
            "warning: the following units failed: web.service",
            id="the line of trouble, not the way back after it",
        ),
        pytest.param("Could not acquire lock\nerror: later\n", "Could not acquire lock", id="the first, not its echo"),
        pytest.param("  error: " + "x" * 400, "error: " + "x" * 292 + "…", id="cut, without its indentation"),
    ],
)
def test_the_telling_line(log: str, line: str) -> None:
    assert telling_line(log) == line
