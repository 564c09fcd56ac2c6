"""What the demo takes for ready, and what it says while it waits."""

from typing import Any

import pytest

from nixops_lab.demo import _title_of
from nixops_lab.stage import is_ready, standing

READY = {"type": "Ready", "status": "True", "reason": "Succeeded", "message": "the declared system runs"}
BUILDING = {"type": "Ready", "status": "Unknown", "reason": "Building", "message": "3 of 12 built"}
FORBIDDEN = {"type": "Stalled", "status": "True", "reason": "HostForbidden", "message": "not in hosts.allowedCidrs"}


def thing(
    *conditions: dict[str, str], kind: str = "NixMachine", name: str = "web", observed: int = 2
) -> dict[str, Any]:
    status = {"observedGeneration": observed, "conditions": list(conditions)}
    return {"kind": kind, "metadata": {"name": name, "generation": 2}, "status": status}


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        pytest.param(thing(READY), True, id="ready"),
        pytest.param(thing(READY, observed=1), False, id="ready for an older spec"),
        pytest.param(thing(BUILDING), False, id="on its way"),
        pytest.param({"metadata": {"generation": 1}}, False, id="never looked at"),
    ],
)
def test_ready_means_for_the_newest_spec(seen: dict[str, Any], expected: bool) -> None:
    assert is_ready(seen) is expected


@pytest.mark.parametrize(
    ("objects", "expected"),
    [
        pytest.param([], "no objects", id="nothing"),
        pytest.param([thing(BUILDING)], "web: Ready=Unknown Building - 3 of 12 built", id="a machine at work"),
        pytest.param(
            [thing(BUILDING | {"status": "False"}, FORBIDDEN)],
            "web: Ready=False HostForbidden - not in hosts.allowedCidrs",
            id="what stands in the way comes first",
        ),
        pytest.param([thing(kind="NixDeployment")], "web: not looked at yet", id="a deployment before its machines"),
        pytest.param(
            [thing(BUILDING, kind="NixDeployment", name="all"), thing(READY)],
            "web: Ready=True Succeeded - the declared system runs",
            id="machines speak for their deployment",
        ),
    ],
)
def test_progress_says_what_is_going_on(objects: list[dict[str, Any]], expected: str) -> None:
    assert standing(objects) == expected


def test_a_page_without_a_title_has_none() -> None:
    assert _title_of("<html><title>\n A page </title>") == "A page"
    assert _title_of("refused") == ""
