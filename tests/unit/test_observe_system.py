"""A configuration's sources, as a pass finds them: read as they are, and missed without harm to what runs."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest

from fakes.cloud import NIXOS_OWNER
from fakes.kube import CLUSTER_ID, FakeKube
from fakes.nix import FakeNix
from nixops_operator import job_names
from nixops_operator.api.reasons import Reason
from nixops_operator.cache import Cache
from nixops_operator.errors import Blocked, InvalidSpec
from nixops_operator.facts.nix import Archive, Folder, Tree
from nixops_operator.host_policy import HostPolicy
from nixops_operator.jobs import Done, Failed, Jobs
from nixops_operator.machine import observe_system, steps
from nixops_operator.machine.observed import ObservedSystem
from nixops_operator.reads import Reads
from nixops_operator.verdict import Outcome
from nixops_operator.world import Policy, World
from unit.builders import BY_HAND, NEW, NOON, host, host_machine, planned, ran, ready, seen, status_of
from unit.fake_time import run

MOUNTED = Folder(Path("/nixpkgs"))
INLINE = {"modules": [{"inline": "{ }"}]}
MODULE = {"modules": [{"configMapKeyRef": {"name": "site", "key": "web.nix"}}]}


def observed(desired: Any, default: Tree = MOUNTED, **config_maps: dict[str, bytes]) -> ObservedSystem:
    """What one pass finds where these ConfigMaps are."""

    async def look() -> ObservedSystem:
        kube, nix = FakeKube(), FakeNix()
        nix.obstacles["aarch64-linux"] = "the operator's node is x86_64-linux"
        kube.config_maps.update({("default", name): data for name, data in config_maps.items()})
        world = World(
            cluster_id=CLUSTER_ID,
            policy=Policy(NIXOS_OWNER, "nixos/25.11*", HostPolicy(), default, timedelta(minutes=30)),
            kube=cast("Any", kube),
            nix=nix,
            cache=Cache(),
            clouds=cast("Any", None),
            hosts=cast("Any", None),
            jobs=Jobs({}, lambda key: None),
            reads=Reads(cast("Any", kube), timedelta(seconds=30)),
            wake=lambda key: None,
            now=lambda: NOON,
            digest_key=b"for tests",
        )
        await asyncio.sleep(0)
        return await observe_system.observe(desired, None, host(), world)

    return run(look())


@pytest.mark.parametrize(
    ("data", "text"),
    [
        pytest.param('{ x = "größer"; }'.encode(), '{ x = "größer"; }', id="UTF-8"),
        pytest.param(b"\xef\xbb\xbf{ }", "{ }", id="a byte-order mark is no part of it"),
    ],
)
def test_a_module_is_read_as_it_is(data: bytes, text: str):
    found = observed(host_machine(configuration=MODULE), site={"web.nix": data})

    assert found.input is not None
    assert [module.text for module in found.input.modules] == [text]


@pytest.mark.parametrize("path", ["web.nix", "./web.nix"])
def test_a_path_means_the_key_of_that_name(path: str):
    """With `./`, as Nix has it, the API server took it, and then there was no such key."""
    configuration = {"source": {"configMapRef": {"name": "site"}}, "modules": [{"path": path}]}

    found = observed(host_machine(configuration=configuration), site={"web.nix": b"{ }"})

    assert found.input is not None
    assert [module.path for module in found.input.modules] == ["web.nix"]


def test_a_key_that_is_missing_is_told_with_those_that_are_there():
    error = observed(host_machine(configuration=MODULE), site={"configuration.nix": b"{ }"}).error

    assert error is not None
    assert error.message == (
        "ConfigMap site (modules[0]) has no key web.nix; it has configuration.nix: name the right one, or add it"
    )


def test_what_is_no_text_is_refused_and_named():
    """Latin-1 became U+FFFD, and was built."""
    error = observed(host_machine(configuration=MODULE), site={"web.nix": "größer".encode("latin-1")}).error

    assert isinstance(error, InvalidSpec)
    assert "site/web.nix (modules[0]) is not UTF-8 text (byte 3)" in error.message


@pytest.mark.parametrize(
    "configuration", [MODULE, {"source": {"configMapRef": {"name": "site"}}, "modules": [{"path": "web.nix"}]}]
)
def test_text_of_two_bytes_a_character_is_refused_and_named(configuration: dict[str, Any]):
    """Without a mark in front it is UTF-8 as well, and Nix reads it as far as the first NUL."""
    error = observed(host_machine(configuration=configuration), site={"web.nix": "{ }".encode("utf-16-le")}).error

    assert isinstance(error, InvalidSpec)
    assert "web.nix (modules[0]) holds a NUL character, as UTF-16 text does" in error.message


@pytest.mark.parametrize(
    ("status", "confirmed"),
    [
        pytest.param(ready() | ran(), NEW, id="confirmed for this generation"),
        pytest.param(ready(generation=0) | ran(), None, id="for an earlier one"),
        pytest.param(ready(truth="False") | ran(), None, id="never ready"),
        pytest.param(ready(), None, id="never active"),
    ],
)
def test_a_source_that_has_gone_leaves_what_was_confirmed_from_it(status: dict[str, Any], confirmed: str | None):
    found = observed(host_machine(status, configuration=MODULE))

    assert found.error is not None
    assert (found.error.reason, found.confirmed) == (Reason.SOURCE_NOT_FOUND, confirmed)


@pytest.mark.parametrize(("system", "place"), [("x86_64-linux", "Operator"), ("aarch64-linux", "Target")])
def test_a_machine_of_another_architecture_than_the_operator_builds_its_system_itself(system: str, place: str):
    assert observed(host_machine(configuration=INLINE | {"system": system})).build_on == place


def test_a_source_that_cannot_be_used_any_more_leaves_nothing():
    """An edited ConfigMap is a new declaration; what was confirmed is not what is declared now."""
    found = observed(host_machine(ready() | ran(), configuration=MODULE), site={"other.nix": b"{ }"})

    assert found.error is not None
    assert found.input is None


def gone(current: str) -> tuple[Any, Any]:
    """A machine whose source was pruned, on which this system runs."""
    desired = host_machine(ready() | ran(), configuration=MODULE)
    return desired, seen(host=host(current, current), system=observed(desired), jobs={})


def test_a_pruned_source_leaves_the_machine_ready_and_is_told():
    """Healing stopped, and the status said that another system runs."""
    desired, found = gone(NEW)

    told = {one["type"]: (one["status"], one["reason"]) for one in status_of(desired, found)["conditions"]}
    assert told["Ready"] == ("True", Reason.SUCCEEDED)
    assert told["ConfigurationBuilt"] == ("False", Reason.SOURCE_NOT_FOUND)
    assert told["ConfigurationActive"][0] == "True"


def test_healing_goes_on_without_the_source():
    desired, found = gone(BY_HAND)

    plan = planned(desired, found)
    assert plan.verdict.reason is not Reason.SOURCE_NOT_FOUND
    assert plan.verdict.outcome in (Outcome.WORKING, Outcome.REPAIRING)
    assert plan.steps


def test_what_a_given_host_runs_today_is_not_what_it_was_installed_with():
    """The host says 25.11; its data may be older, and PostgreSQL would not read them."""
    found = observed(host_machine(configuration={"modules": [{"inline": "{ }"}]}))

    assert found.input is not None
    assert found.input.state_version is None


def test_the_state_version_of_a_given_host_that_was_recorded_stays():
    recorded = host_machine({"system": {"stateVersion": "24.05"}}, configuration={"modules": [{"inline": "{ }"}]})

    found = observed(recorded)

    assert found.input is not None
    assert found.input.state_version == "24.05"


HASH, OTHER = (f"sha256-{letter * 43}=" for letter in "AB")


def with_default(desired: Any, nar_hash: str) -> ObservedSystem:
    """What a pass finds where the operator's default nixpkgs is the tree of that hash."""
    return observed(desired, default=Archive("https://example.org/nixpkgs.tar.gz", nar_hash, is_administrators=True))


def settled(nixpkgs: str | None) -> dict[str, Any]:
    """The status of a machine that was confirmed with that default nixpkgs."""
    status = ready() | ran()
    return status | {"system": status["system"] | ({"nixpkgs": nixpkgs} if nixpkgs else {})}


def test_another_default_nixpkgs_moves_no_settled_machine_and_is_told():
    found = with_default(host_machine(settled(HASH)), OTHER)

    assert found.input is None
    assert found.error is not None
    assert (found.error.reason, found.confirmed) == (Reason.NIXPKGS_CHANGED, NEW)
    assert OTHER in found.error.message


@pytest.mark.parametrize(
    ("status", "fields"),
    [
        pytest.param(settled(HASH) | {"reachedGeneration": 0, "conditions": []}, {}, id="its spec has changed"),
        pytest.param(settled(None), {}, id="none was recorded"),
        pytest.param(settled(OTHER), {}, id="it has it already"),
        pytest.param(
            settled(HASH),
            {"configuration": {**INLINE, "nixpkgs": {"url": "https://x.org/", "hash": HASH}}},
            id="its own",
        ),
    ],
)
def test_who_takes_the_default_nixpkgs_of_the_day(status: dict[str, Any], fields: dict[str, Any]):
    found = with_default(host_machine(status, **fields), OTHER)

    assert found.input is not None
    assert found.input.nixpkgs is not None
    own = found.input.nixpkgs.identity == HASH
    assert found.default_nixpkgs == (None if own else OTHER)


def test_the_taken_default_is_written_down():
    desired = host_machine(settled(None))

    fields = status_of(desired, seen(host=host(NEW, NEW), system=with_default(desired, OTHER), jobs={}))
    assert fields["system"]["nixpkgs"] == OTHER


def test_trees_are_fetched_before_anything_is_evaluated():
    desired = host_machine()
    system = with_default(desired, OTHER)
    assert system.input is not None
    (tree,) = system.input.trees
    fetch = job_names.fetch(tree.origin)

    first = planned(desired, seen(host=host(), system=system, jobs={}))
    assert [step.job for step in first.steps if isinstance(step, steps.Fetch)] == [fetch]
    assert not [step for step in first.steps if isinstance(step, steps.Evaluate)]

    refused = Blocked(Reason.SOURCE_FORBIDDEN, "example.org: 10.0.0.1 is a private address")
    failed = planned(desired, seen(host=host(), system=system, jobs={fetch: Failed(refused)}))
    assert failed.verdict.reason is Reason.SOURCE_FORBIDDEN

    fetched = planned(desired, seen(host=host(), system=system, jobs={fetch: Done(None)}))
    assert [step for step in fetched.steps if isinstance(step, steps.Evaluate)]


def test_what_one_place_answers_is_not_told_of_another():
    """A tenant who names a forbidden address beside the hash of a tree holds up nobody who names a good one."""
    desired = host_machine()
    elsewhere, here = (Archive(url, HASH) for url in ("http://10.0.0.1/x.tar.gz", "https://example.org/x.tar.gz"))

    def fetches(tree: Archive, jobs: dict[str, Any]) -> list[steps.Fetch]:
        plan = planned(desired, seen(host=host(), system=observed(desired, default=tree), jobs=jobs))
        return [step for step in plan.steps if isinstance(step, steps.Fetch)]

    (theirs,) = fetches(elsewhere, {})
    refused = Failed(Blocked(Reason.SOURCE_FORBIDDEN, "10.0.0.1 is a private address"))

    assert [step.tree for step in fetches(here, {theirs.job: refused})] == [here]
