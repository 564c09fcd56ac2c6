"""What Argo CD makes of our objects: by the files that docs/reference/argocd holds, in the layout of its own repository
(resource_customizations/<group>/<Kind>), beside kstatus, by which Flux and Helm wait."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
import yaml

from judges import agreement, argo, kstatus
from nixops_operator.api import argocd
from nixops_operator.api.reasons import Reason
from nixops_operator.objects import is_paused
from nixops_operator.ready import ready_conditions
from nixops_operator.verdict import Outcome, Verdict
from unit.builders import condition

KINDS = ("NixMachine", "NixDeployment")
CHECKOUT = Path(__file__).parents[2]


def loaded(path: Path):
    return yaml.safe_load(path.read_text())


def rows(name: str, table: str):
    """Each row of a test file of both kinds, with its folder."""
    for kind in KINDS:
        path = argo.CUSTOMIZATIONS / kind / name
        for row in loaded(path)[table]:
            what = f"{row.get('action', '')} {Path(row['inputPath']).stem}".strip()
            yield pytest.param(path.parent, row, id=f"{kind}: {what}")


@pytest.mark.parametrize(("folder", "row"), list(rows("health_test.yaml", "tests")))
def test_health(folder, row):
    expected = row["healthStatus"]

    assert argo.health(loaded(folder / row["inputPath"])) == (expected["status"], expected["message"])


@pytest.mark.parametrize(("folder", "row"), list(rows("actions/action_test.yaml", "discoveryTests")))
def test_actions_that_are_offered(folder, row):
    assert argo.actions(loaded(folder / row["inputPath"])) == {each["name"]: each["disabled"] for each in row["result"]}


@pytest.mark.parametrize(("folder", "row"), list(rows("actions/action_test.yaml", "actionTests")))
def test_actions_that_are_taken(folder, row):
    done = argo.act(loaded(folder / row["inputPath"]), row["action"])

    notes = done["metadata"].get("annotations", {})
    if "nixops.dev/reconcile-requested-at" in notes:  # now; Argo CD's own test has the year 1 there
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", notes["nixops.dev/reconcile-requested-at"])
        notes["nixops.dev/reconcile-requested-at"] = "0001-01-01T00:00:00Z"
    assert done == loaded(folder / row["expectedOutputPath"])


@pytest.mark.parametrize(
    "name",
    [
        "health.lua",
        *(
            f"actions/{each}"
            for each in ("discovery.lua", "reconcile/action.lua", "suspend/action.lua", "resume/action.lua")
        ),
    ],
)
def test_both_kinds_are_judged_alike(name):
    one, other = ((argo.CUSTOMIZATIONS / kind / name).read_text() for kind in KINDS)

    assert one == other


STATES = ("", "suspended", "paused", "deleting")


def judged_things():
    """What each outcome of a pass leaves, and besides whatever the three conditions may say by themselves; of this and
    of an earlier generation, suspended in either way, or going."""
    told = {
        f"{outcome.name} {serves=} {settled=}": [
            one.as_dict()
            for one in ready_conditions(
                [condition("Ready", "True")],
                3,
                Verdict(outcome, Reason.PROVISIONING, "text", is_settled=settled),
                serves,
            )
        ]
        for outcome, serves, settled in itertools.product(Outcome, (True, False), (True, False))
    } | {
        f"{ready} {beside}": [condition(kind, status) for kind, status in (("Ready", ready), (beside, "True")) if kind]
        for ready, beside in itertools.product(("True", "False", "Unknown"), ("Reconciling", "Stalled", ""))
    }
    for (name, conditions), observed, state in itertools.product(told.items(), (3, 2), STATES):
        yield pytest.param(judged_thing(conditions, observed, state), id=f"{name} {observed=} {state}")


def judged_thing(conditions, observed, state):
    thing = {
        "kind": "NixMachine",
        "metadata": {"generation": 3},
        "spec": {},
        "status": {"observedGeneration": observed, "conditions": conditions},
    }
    if state == "suspended":
        thing["spec"]["suspend"] = True
    elif state == "paused":
        thing["metadata"]["annotations"] = {"nixops.dev/paused": "true"}
    elif state == "deleting":
        thing["metadata"]["deletionTimestamp"] = "2026-03-01T10:00:00Z"
    return thing


@pytest.mark.parametrize("thing", list(judged_things()))
def test_argo_cd_and_kstatus_never_contradict_each_other(thing):
    assert (kstatus.status(thing), argo.health(thing)[0]) in agreement.AGREED


def test_an_object_that_nobody_looked_at_is_not_taken_for_done():
    thing = {"kind": "NixMachine", "metadata": {"generation": 1}, "spec": {}, "status": {"observedGeneration": -1}}

    assert (kstatus.status(thing), argo.health(thing)[0]) == ("InProgress", "Progressing")


@pytest.mark.parametrize("value", ["true", "True", "", "until Monday", "false"])
def test_what_pauses_an_object_is_what_the_operator_takes_for_it(value):
    thing = judged_thing([condition("Ready", "True")], 3, "")
    thing["metadata"]["annotations"] = {"nixops.dev/paused": value}
    paused = is_paused(thing, suspend=False)

    assert argo.health(thing)[0] == ("Suspended" if paused else "Healthy")
    assert argo.actions(thing) == {"reconcile": paused, "suspend": paused, "resume": not paused}


@pytest.mark.parametrize(
    "line",
    [
        "if obj.status.observedGeneration ~= obj.metadata.generation then",
        'if stalled ~= nil and stalled.status == "True" then',
        'if reconciling ~= nil and reconciling.status == "True" then',
        'if ready.status == "True" then',
        "if obj.metadata.deletionTimestamp ~= nil then",
    ],
)
def test_a_rule_that_is_missing_is_found(line):
    """The comparison with kstatus can fail."""
    script = (argo.CUSTOMIZATIONS / "NixMachine/health.lua").read_text()
    assert line in script
    broken = script.replace(line, "if false then")

    things = [parameter.values[0] for parameter in judged_things()]
    judged = {(kstatus.status(thing), argo.health(thing, broken)[0]) for thing in things}

    assert not judged <= agreement.AGREED


def test_the_text_for_argocd_cm_is_that_of_the_files():
    for name, content in argocd.files(CHECKOUT).items():
        assert (CHECKOUT / name).read_text() == content
    data = loaded(CHECKOUT / argocd.PATCH)["data"]
    for kind in KINDS:
        assert (
            data[f"resource.customizations.health.nixops.dev_{kind}"]
            == (argo.CUSTOMIZATIONS / kind / "health.lua").read_text()
        )
        actions = yaml.safe_load(data[f"resource.customizations.actions.nixops.dev_{kind}"])
        assert [each["name"] for each in actions["definitions"]] == ["reconcile", "resume", "suspend"]
        assert "disabled" in actions["discovery.lua"]
