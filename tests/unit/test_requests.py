"""A request to look now counts once, whichever annotation it stands in."""

from __future__ import annotations

import pytest

from nixops_operator.requests import requests_of

NIXOPS, FLUX = "nixops.dev/reconcile-requested-at", "reconcile.fluxcd.io/requestedAt"


@pytest.mark.parametrize(
    ("annotations", "status", "new"),
    [
        pytest.param({}, {}, None, id="none"),
        pytest.param({NIXOPS: "a"}, {}, "a", id="ours"),
        pytest.param({FLUX: "a"}, {}, "a", id="Flux's"),
        pytest.param({NIXOPS: "a"}, {"lastHandledReconcileAt": "a"}, None, id="handled by an earlier release"),
        pytest.param(
            {NIXOPS: "a", FLUX: "b"},
            {"lastHandledReconcileAt": "a", "handledRequests": ["a"]},
            "b",
            id="Flux's is seen although ours still stands there",
        ),
        pytest.param(
            {NIXOPS: "a", FLUX: "b"},
            {"lastHandledReconcileAt": "b", "handledRequests": ["a", "b"]},
            None,
            id="both handled: neither comes back",
        ),
        pytest.param(
            {NIXOPS: "c", FLUX: "b"},
            {"lastHandledReconcileAt": "b", "handledRequests": ["a", "b"]},
            "c",
            id="ours again",
        ),
    ],
)
def test_what_counts_as_a_new_request(annotations, status, new):
    assert requests_of(annotations, status).new == new


def test_an_answer_remembers_all_that_stood_there():
    requests = requests_of({NIXOPS: "a", FLUX: "b"}, {"lastHandledReconcileAt": "a", "handledRequests": ["a"]})

    assert requests.answered() == {"lastHandledReconcileAt": "b", "handledRequests": ["a", "b"]}
