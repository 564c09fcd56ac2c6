"""What is in git is what runs: examples/gitops/argocd under Argo CD's own controllers, with health and actions of
docs/reference/argocd.

The tests follow each other as commits do; each leaves the site as it found it, but for the last one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from cluster.gitops.repository import Repository
from cluster.gitops.site import MACHINES, TITLE
from cluster.gitops.under_argocd import CUSTOMIZATIONS, IN_ARGOCD, Site, applied, external_secrets, planted
from cluster.place import Place, is_ready
from cluster.polling import eventually
from nixops_lab.argocd import CONTROLLER

OUR_HEALTH = "resource.customizations.health.nixops.dev_NixDeployment"


@pytest.fixture(scope="module")
def site(argocd: Any, shared_place: Place, new_repository: Callable[[str], Repository]) -> Iterator[Site]:
    site = planted(shared_place, new_repository(shared_place.namespace))
    site.commit("Two machines")
    with applied(site):
        yield site


def test_a_wave_begins_when_the_one_before_is_healthy(site: Site) -> None:
    """The machines' Application is not even there while their Secret is not; the root is healthy when they serve."""
    site.waits_for("healthy state of argoproj.io/Application/machines-secrets", "nixops")
    assert site.find("machines") is None

    external_secrets(site)

    revision = site.application("nixops")["status"]["sync"]["revision"]
    site.synced(revision)
    site.synced(revision, "nixops")
    assert site.titles() == {TITLE}


def test_at_rest_it_is_in_sync_and_nobody_writes(site: Site) -> None:
    """G3: ten comparisons in Argo CD's own way, and ten that the API server makes."""
    eventually(lambda: all(is_ready(thing) for thing in site.place.objects()), "all rest", last=site.told)
    versions, since = site.versions(), site.place.mark()

    found = site.intervals(10)
    site.annotate("machines", "argocd.argoproj.io/compare-options=ServerSideDiff=true")
    found += site.intervals(10)
    site.annotate("machines", "argocd.argoproj.io/compare-options-")

    assert set(found) == {"Synced"}
    assert site.written(since) == []
    assert site.versions() == versions


def test_what_is_stopped_is_healed_and_never_out_of_sync(site: Site) -> None:
    """G4: and while it is down it is not healthy."""
    instance = site.instance("web-one")
    site.place.ec2.stop_instances(InstanceIds=[instance])
    eventually(lambda: site.health() == "Progressing", "Argo CD shows it", 60, site.told)

    assert set(site.intervals(1)) == {"Synced"}
    site.runs_again(instance, site.told)
    eventually(lambda: site.health() == "Healthy", "all is healthy again", 60, site.told)
    assert site.instance("web-one") == instance


def test_suspended_by_its_action_it_stays_so(site: Site) -> None:
    """G8: self-healing does not take the annotation away; `resume` heals what was done meanwhile."""
    instance = site.instance("web-one")
    site.act("suspend")
    eventually(lambda: site.health() == "Suspended", "Argo CD shows it", 60, site.told)
    site.stop(instance)

    assert set(site.intervals(3)) == {"Synced"}
    assert site.place.get("nixdeployment", "web")["metadata"]["annotations"]["nixops.dev/paused"] == "true"
    assert site.state(instance) == "stopped"
    assert site.health() == "Suspended"

    site.act("resume")
    site.runs_again(instance, site.told)
    eventually(lambda: site.health() == "Healthy", "all is healthy again", 60, site.told)


def test_suspended_by_a_commit_nothing_moves(site: Site) -> None:
    """Not even by what else is in it; the commit that resumes comes through."""
    site.repository.replace("machines/nixdeployment.yaml", "spec:\n  aws:", "spec:\n  suspend: true\n  aws:")
    site.repository.replace("machines/configuration.nix", TITLE, "Not yet")
    site.synced(site.commit("Suspend"), health="Suspended")

    assert set(site.intervals(3)) == {"Synced"}
    assert site.titles() == {TITLE}

    site.synced(site.revert())
    assert site.titles() == {TITLE}


def add_wave(site: Site, name: str) -> None:
    """A ConfigMap that comes after the machines, and a change of theirs that it has to wait for."""
    body = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "annotations": {"argocd.argoproj.io/sync-wave": "1"}},
    }
    (site.repository.folder / f"machines/{name}.yaml").write_text(yaml.safe_dump(body))
    site.repository.replace(
        "machines/kustomization.yaml", "  - nixdeployment.yaml\n", f"  - nixdeployment.yaml\n  - {name}.yaml\n"
    )
    site.repository.replace("machines/configuration.nix", TITLE, f"{TITLE}, {name}")


def order(site: Site, since: int, name: str) -> list[str]:
    """Of two things, as the API server saw them: the ConfigMap of that name is made, the deployment is ready again."""
    seen = []
    for entry in site.requests(since):
        about = entry["objectRef"]
        if (about["resource"], about.get("name")) == ("configmaps", name) and entry["verb"] in {"create", "patch"}:
            if "dryRun" not in entry["requestURI"]:
                seen.append("made")
        elif (about["resource"], about.get("subresource")) == ("nixdeployments", "status"):
            thing = entry.get("responseObject") or {}
            if thing.get("kind") == "NixDeployment" and is_ready(thing) and "ready" not in seen:
                seen.append("ready")
    return [what for place, what in enumerate(seen) if what not in seen[:place]]


@pytest.mark.parametrize("is_told", [True, False], ids=["with our health", "without"])
def test_what_comes_after_the_machines_waits_for_them(site: Site, is_told: bool) -> None:
    """G5: within one Application, too; without our Lua it begins at once."""
    name = f"after-{'judged' if is_told else 'unjudged'}"
    if not is_told:
        patch = json.dumps({"data": {OUR_HEALTH: None}})
        site.place.kubectl("patch", "configmap", "argocd-cm", IN_ARGOCD, "--type=merge", f"--patch={patch}")
        site.intervals(2)
    since = site.place.mark()
    add_wave(site, name)
    revision = site.commit("Something that comes after the machines")
    try:
        if is_told:
            site.waits_for("healthy state of nixops.dev/NixDeployment/web")
            assert site.place.find("configmap", name) is None
        eventually(lambda: set(order(site, since, name)) == {"made", "ready"}, "both are done", 180, site.told)
        assert order(site, since, name) == (["ready", "made"] if is_told else ["made", "ready"])
    finally:
        shared = str(CUSTOMIZATIONS[0])
        site.place.kubectl("patch", "configmap", "argocd-cm", IN_ARGOCD, f"--patch-file={shared}")
    site.synced(revision)
    site.synced(site.revert())
    assert site.titles() == {TITLE}


def test_a_broken_commit_fails_and_the_next_one_comes_through(site: Site) -> None:
    """G2: `retry.refresh`; without it the sync would be tried again and again with the commit that made it fail."""
    add_wave(site, "never")
    site.repository.replace("machines/configuration.nix", "services.httpd.enable = true;", "services.httpd.enable = ;")
    site.commit("A module that is none")

    site.waits_for("syntax error")
    assert site.health() == "Degraded"
    assert site.titles() == {TITLE}
    assert site.place.find("configmap", "never") is None

    site.synced(site.revert())
    assert site.titles() == {TITLE}


def test_what_is_taken_out_of_git_goes_when_somebody_confirms(site: Site) -> None:
    """G7: the Application of the machines, and they with it, each asking first; then EC2 is empty."""
    site.repository.replace("applications/kustomization.yaml", "  - machines.yaml\n", "")
    shutil.move(site.repository.folder / "applications/machines.yaml", site.repository.folder / "unused.yaml")
    site.commit("No machines any more")

    site.waits_for("pruning confirmation of argoproj.io/Application/machines", "nixops")
    assert "deletionTimestamp" not in site.application()["metadata"]
    site.approve("nixops")
    eventually(lambda: "deletionTimestamp" in site.application()["metadata"], "it is being deleted", 60, site.told)
    log = site.place.lab.paths.logs / f"{CONTROLLER}.log"
    asked = "requires manual confirmation to delete"
    eventually(lambda: asked in log.read_text(), "it has come to what has to be confirmed", 60, site.told)
    assert {site.state(site.instance(machine)) for machine in MACHINES} == {"running"}
    assert "deletionTimestamp" not in site.place.get("nixdeployment", "web")["metadata"]

    site.approve("machines")
    eventually(lambda: site.find("machines") is None, "the Application is gone", 180, site.told)
    assert site.place.left_in_ec2() == []
    assert site.place.objects() == []
    assert site.place.find("secret", "aws") is not None, "the layer below is still there"
