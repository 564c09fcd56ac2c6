"""Machines whose configurations name each other's addresses: made together from nothing, and followed."""

from __future__ import annotations

from typing import Any

import pytest

from cluster import specs
from cluster.place import Place, condition
from cluster.polling import eventually

DEPLOYMENT, WEB, DB = "pair", "pair-web", "pair-db"


def pair() -> dict[str, Any]:
    """Each machine serves what it has read of the other one."""
    of_web = specs.page("${nodes.db.config.networking.privateIPv4} ${nodes.db.config.networking.domain}")
    of_db = specs.page("${nodes.web.config.networking.publicIPv4}", 'networking.domain = "db.example.org";')
    deployment = specs.on_ec2(_reading(of_web), DEPLOYMENT)
    (web,) = deployment["spec"]["machines"]
    db = {**web, "name": "db", "configuration": {"modules": [{"inline": _reading(of_db)}]}}
    return {**deployment, "spec": {**deployment["spec"], "machines": [web, db]}}


def _reading(module: str) -> str:
    return module.replace("{ pkgs, lib, ... }", "{ pkgs, lib, nodes, ... }", 1)


@pytest.fixture(scope="module")
def made(shared_place: Place) -> Place:
    shared_place.aws_secret()
    shared_place.apply(pair())
    shared_place.wait_ready(f"nixdeployment/{DEPLOYMENT}")
    return shared_place


def address(place: Place, machine: str, kind: str) -> str:
    return str((place.get("nixmachine", machine)["status"].get("addresses") or {}).get(kind, ""))


def title(place: Place, machine: str) -> str:
    return place.title(address(place, machine, "public"))


def test_two_machines_that_name_each_other_are_made_together(made: Place) -> None:
    assert title(made, WEB) == f"{address(made, DB, 'private')} db.example.org"
    assert title(made, DB) == address(made, WEB, "public")
    told = {reason for name in (WEB, DB) for _, reason in made.told(name, "ConfigurationBuilt")}
    assert "EvaluationFailed" not in told


def test_who_names_an_address_follows_when_it_becomes_another_one(made: Place) -> None:
    before, since = address(made, WEB, "public"), made.mark()
    machine = made.get("nixmachine", WEB)["status"]["instance"]["id"]
    made.ec2.stop_instances(InstanceIds=[machine])

    eventually(lambda: title(made, DB) not in ("", before), "db names another address", last=lambda: title(made, DB))
    made.wait_ready(f"nixdeployment/{DEPLOYMENT}")
    now = address(made, WEB, "public")
    assert now != before
    assert title(made, DB) == now
    assert title(made, WEB) == f"{address(made, DB, 'private')} db.example.org"
    assert "EvaluationFailed" not in {reason for _, reason in made.told(DB, "ConfigurationBuilt", since)}


def test_who_names_the_address_of_a_machine_that_is_off_waits_for_it(made: Place) -> None:
    def switch(state: str) -> None:
        path = "/spec/machines/0/target/ec2/powerState"
        made.patch("nixdeployment", DEPLOYMENT, {"op": "add", "path": path, "value": state})

    switch("Stopped")
    waiting = {"ConfigurationBuilt": "False/WaitingForFacts", "Ready": "Unknown/WaitingForFacts"}
    found = made.await_condition("nixmachine", DB, waiting)
    path = "nodes.web.config.networking.publicIPv4"
    assert condition(found, "Ready")["message"].startswith(f"waiting for {path}: web has an instance that is stop")
    switch("Running")
    made.wait_ready(f"nixdeployment/{DEPLOYMENT}")
    assert title(made, DB) == address(made, WEB, "public") != ""
