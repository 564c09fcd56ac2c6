"""What holds for the repository as a whole: layout, what tracked files may say, locks, and rights against their use."""

import ast
import inspect
import operator
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from cluster.lockouts import test_table
from nixops_operator.adapters.kube.api import KubernetesApi
from nixops_operator.adapters.kube.lease import Lease
from nixops_operator.api.machine_of_deployment import machines_of
from nixops_operator.api.reasons import Reason
from nixops_operator.facts.kube import Event, Key, Kind, OwnerReference, Secret
from nixops_operator.names import IN_USE_FINALIZER
from nixops_operator.ports.kube import Kube

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def tracked() -> Iterator[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listing.split("\0")):
        if (ROOT / name).is_file():
            yield ROOT / name


# Layout


def test_the_source_root_does_not_hide_the_standard_library() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert Path(operator.__file__).is_relative_to(Path(sys.base_prefix))


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile", ".ci/run"])
def test_what_people_expect_is_there(name: str) -> None:
    assert (ROOT / name).stat().st_size > 0


def test_ci_leaves_no_test_out() -> None:
    """`make test` does, for people who wait for it."""
    (command,) = re.findall(r"^exec (make test.*)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)

    # A make hands its variables on to those below it; CI's own is above this test.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "LONG"))}

    def recipe(*argv: str) -> str:
        argv = (*argv, "--dry-run")
        return subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout

    assert "not long" in recipe("make", "test")
    assert "not long" not in recipe(*command.split())


def test_what_takes_long_names_a_quicker_test_that_covers_the_ordinary_way() -> None:
    texts = {path: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    marks = [
        (path.name, mark)
        for path, text in texts.items()
        for mark in re.findall(r"\bmark\.long\b(.*)", text, re.MULTILINE)
    ]

    assert len(marks) > 1
    assert [
        f"{name}: {mark}"
        for name, mark in marks
        if not (named := re.match(r'\(instead="([^"]+)"\)', mark)) or ROOT / "tests" / named[1] not in texts
    ] == []


def test_every_way_to_be_locked_out_has_its_row_of_tests_and_its_line_on_the_page() -> None:
    page = (ROOT / "docs/how-to/activation.md").read_text()
    section = page.partition("## What could lock you out")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if re.match(r"\| (?!The new system|In EC2)[a-z]", line)]
    shown = {row.line for row in test_table.ALL.values()}

    assert [line for line in lines if not any(line.startswith(f"| {row}") for row in shown)] == []
    assert [row for row in shown if not any(line.startswith(f"| {row}") for line in lines)] == []
    line_of = {row: next(line for line in lines if line.startswith(f"| {row}")) for row in shown}
    assert [
        name
        for name, row in test_table.ALL.items()
        if row.reason != Reason.SUCCEEDED and f"`{row.reason}`" not in line_of[row.line]
    ] == []
    assert [
        words
        for line in lines
        for words in re.findall(r"\"(?:… )?(.*?)(?: …)?\"", line)
        if not any(row.says and row.says in words for row in test_table.ALL.values() if line_of[row.line] == line)
    ] == []


def test_decision_records_are_numbered_without_gaps() -> None:
    numbers = sorted(int(path.name[:4]) for path in (ROOT / "docs" / "decisions").glob("[0-9]*.md"))

    assert numbers == list(range(1, len(numbers) + 1))


def test_nothing_is_raised_inside_except_star() -> None:
    """Debian 12 has Python 3.11.2; before 3.11.4 it comes out wrapped in a group (CPython issue 103590)."""
    raising = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / "operator").rglob("*.py"))
        for block in ast.walk(ast.parse(path.read_text()))
        if isinstance(block, ast.TryStar)
        for handler in block.handlers
        for node in ast.walk(handler)
        if isinstance(node, ast.Raise) and node.exc is not None
    ]

    assert raising == []


# What tracked files may say


def test_the_readme_s_first_example_is_one() -> None:
    fences = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)

    (child,) = machines_of(yaml.safe_load(fences[0]))

    assert child.name == "example-webserver"


def test_the_network_that_is_moved_over_is_a_deployment() -> None:
    """The page for users of NixOps shows a network and what becomes of it."""
    page = (ROOT / "docs/how-to/from-nixops.md").read_text()
    spec = yaml.safe_load(page.partition("```yaml\n")[2].partition("```")[0])["spec"]

    (machine,) = machines_of({"metadata": {"name": "shop"}, "spec": spec})

    assert [module.path for module in machine.settings.configuration.modules] == ["common.nix", "web.nix"]


def test_every_reason_is_explained_to_people() -> None:
    page = (ROOT / "docs" / "how-to" / "trouble.md").read_text()

    assert [reason for reason in Reason if f"`{reason}`" not in page] == []


def test_every_link_between_documents_leads_somewhere() -> None:
    pages = [path for path in tracked() if path.suffix == ".md"]
    links = [(page, link) for page in pages for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())]

    assert links
    assert [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize(
    "forbidden",
    [
        pytest.param(rf"{re.escape(str(ROOT))}\b", id="the folder of this checkout"),
        pytest.param(r"(?<!emit-)(extra-)?index-url|GOPROXY=http|https?://\S*/simple\b", id="a package mirror"),
        pytest.param(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\n[A-Za-z0-9+/=\n]{300}", id="a private key"),
    ],
)
def test_no_tracked_file_holds(forbidden: str) -> None:
    pattern = re.compile(forbidden)
    own = Path(__file__).resolve()

    found = [path.name for path in tracked() if path != own and pattern.search(path.read_text(errors="replace"))]

    assert found == []


@pytest.mark.parametrize("page", ["FAULTS.md", "CHANGES.md"])
def test_a_page_about_tests_names_tests_that_exist(page: str) -> None:
    named = re.findall(r"`([a-z_/0-9]+\.py)::(test_\w+)(?:\[([^`]+)\])?`", (ROOT / "tests" / page).read_text())
    text_of = {file: (ROOT / "tests" / file).read_text() for file, _, _ in named}

    assert named
    assert [
        f"{file}::{test}[{row}]"
        for file, test, row in named
        if f"def {test}(" not in text_of[file] or row not in text_of[file].replace('\\"', '"')
    ] == []


def lines_of(page: Path, heading: str) -> dict[str, list[str]]:
    """First cell → the other cells, of the first table below that heading."""
    _, _, text = page.read_text().partition(heading)
    table = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert table is not None
    rows = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in table[0].splitlines()[2:]]
    return {first: others for first, *others in rows}


CHANGES, REFERENCE = ROOT / "tests" / "CHANGES.md", ROOT / "docs" / "reference" / "ec2-fields.md"


def test_every_field_in_ec2_is_changed_by_a_test() -> None:
    """A new field, or a new line of the documentation, needs its line there."""
    machine, key_pairs, groups = (
        {f"`{prefix}.{field.split('`, `')[0].strip('`')}`": by_hand for field, (_, by_hand, _) in lines.items()}
        for prefix, lines in (
            ("target.ec2", lines_of(REFERENCE, "## `target.ec2`")),
            ("keyPairs[]", lines_of(REFERENCE, "## `keyPairs[]`")),
            ("securityGroups[]", lines_of(REFERENCE, "## `securityGroups[]`")),
        )
    )
    documented = {**machine, **key_pairs, **groups}
    tested = lines_of(CHANGES, "## What is changed in EC2")

    assert list(tested) == list(documented)
    assert [field for field, (spec, _) in tested.items() if "::" not in spec] == []
    impossible = {field for field, by_hand in documented.items() if by_hand.startswith("nobody can")}
    assert {field for field, (_, by_hand) in tested.items() if by_hand == "nobody can"} == impossible


def test_all_fourteen_changes_by_hand_that_nixops_does_not_put_right_have_a_test() -> None:
    assert len(lines_of(CHANGES, "## Fourteen changes")) == 14


def test_every_change_on_a_machine_has_a_line() -> None:
    documented = list(lines_of(ROOT / "docs" / "explanation" / "by-hand.md", "# What is changed"))
    tested = list(lines_of(CHANGES, "## What is changed on a machine"))

    assert len(documented) == len(tested)
    assert [(long, short) for long, short in zip(documented, tested, strict=True) if not long.startswith(short)] == []


def test_large_files_stay_out() -> None:
    assert [path.name for path in tracked() if path.stat().st_size > 600_000] == []


# Locks


def locked(name: str) -> dict[str, Version]:
    """Package → version, of one file of requirements/."""
    lines = (ROOT / "requirements" / name).read_text().splitlines()
    pins = [Requirement(line.rstrip(" \\")) for line in lines if re.match(r"[A-Za-z0-9]", line)]
    return {_canonical(pin.name): Version(next(iter(pin.specifier)).version) for pin in pins}


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize(
    ("file", "wanted"),
    [
        pytest.param("runtime.txt", PROJECT["project"]["dependencies"], id="runtime"),
        pytest.param(
            "dev.txt", PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["dev"], id="development"
        ),
    ],
)
def test_the_lock_has_what_the_project_asks_for(file: str, wanted: list[str]) -> None:
    pins = locked(file)

    for requirement in map(Requirement, wanted):
        assert pins[_canonical(requirement.name)] in requirement.specifier, requirement


def test_development_tests_what_runs() -> None:
    assert locked("runtime.txt").items() <= locked("dev.txt").items()


def test_every_pin_has_a_hash() -> None:
    for name in ("runtime.txt", "dev.txt"):
        text = (ROOT / "requirements" / name).read_text()
        pins = re.findall(r"^[A-Za-z0-9][^\n]*==[^\n]*\n(?:    --hash=)?", text, re.MULTILINE)
        assert pins
        assert [pin for pin in pins if not pin.endswith("--hash=")] == []


def test_installed_versions_are_those_that_were_tried() -> None:
    assert Version(version("boto3")) >= Version("1.43")  # a resolver under pressure goes back to 0.0.3
    assert Version(version("python-dateutil")) < Version("3")  # botocore excludes it


# Rights: those of the chart are those that the Kubernetes adapter uses


class RecordingConnection:
    """Takes every request and notes it as RBAC names it."""

    def __init__(self) -> None:
        self.used: set[tuple[str, str]] = set()

    async def request(self, method: str, path: str, what: str, **_: object) -> dict[str, Any]:
        self.used.add(_as_rbac(method, path))
        return {"metadata": {"uid": "u", "resourceVersion": "1", "name": "x", "namespace": "default"}, "items": []}


def _as_rbac(method: str, path: str) -> tuple[str, str]:
    """("patch", "nixops.dev/nixmachines/status") of PATCH …/namespaces/default/nixmachines/x/status."""
    parts = path.strip("/").split("/")
    group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    if rest[0] == "namespaces" and len(rest) > 2:
        rest = rest[2:]
    resource, *more = rest
    verb = {"GET": "get" if more else "list", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
    return verb[method], "/".join([group, resource, *more[1:]])


def body(kind: Kind, finalizers: tuple[str, ...] = ()) -> dict[str, Any]:
    metadata = {"name": "x", "namespace": "default", "uid": "u", "resourceVersion": "1", "finalizers": list(finalizers)}
    return {"kind": kind.object_kind, "metadata": metadata, "spec": {}}


SECRET = Secret(name="x", uid="u", resource_version="1", data={})

Use = Callable[[KubernetesApi, Kind], Any]
MACHINE_ONLY = {"create_machine", "replace_machine_spec", "delete_machine"}
USES: dict[str, Use] = {
    "cluster_id": lambda kube, _: kube.cluster_id(),
    "list": lambda kube, kind: anext(kube.list(kind)),
    "get": lambda kube, kind: kube.get(Key(kind, "default", "x")),
    "add_finalizer": lambda kube, kind: kube.add_finalizer(body(kind)),
    "remove_finalizer": lambda kube, kind: kube.remove_finalizer(body(kind, ("nixops.dev/finalizer",))),
    "write_intent": lambda kube, kind: kube.write_intent(body(kind), {}),
    "patch_status": lambda kube, kind: kube.patch_status(body(kind), {}),
    "create_machine": lambda kube, kind: kube.create_machine(body(kind)),
    "replace_machine_spec": lambda kube, kind: kube.replace_machine_spec(body(kind), {}, {}),
    "delete_machine": lambda kube, kind: kube.delete_machine(body(kind)),
    "create_secret": lambda kube, kind: kube.create_secret(
        "default", "x", {}, owner=OwnerReference(kind, "x", "u"), type_="Opaque", immutable=True
    ),
    "read_secret": lambda kube, _: kube.read_secret("default", "x"),
    "update_secret": lambda kube, _: kube.update_secret("default", SECRET, {}),
    "remove_secret": lambda kube, _: kube.remove_secret("default", SECRET),
    "hold_secret": lambda kube, _: kube.hold_secret("default", SECRET),
    "release_secret": lambda kube, _: kube.release_secret("default", replace(SECRET, finalizers=(IN_USE_FINALIZER,))),
    "disown_secret": lambda kube, _: kube.disown_secret("default", "x", "u"),
    "get_config_map": lambda kube, _: kube.get_config_map("default", "x"),
    "post_event": lambda kube, kind: kube.post_event(
        Event(Key(kind, "default", "x"), "u", "Normal", "Ready", "the declared system runs")
    ),
}
# Not sent by the adapter: kopf's watch, and what the API server asks of whoever sets a blocking owner reference.
BESIDE_THE_ADAPTER = {
    ("watch", "nixops.dev/nixdeployments"),
    ("watch", "nixops.dev/nixmachines"),
    ("update", "nixops.dev/nixdeployments/finalizers"),
    ("update", "nixops.dev/nixmachines/finalizers"),
}


CHART = ROOT / "helm/nixops-operator"


def rights(rules: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """(verb, group/resource) of RBAC rules."""
    return {
        (verb, f"{group}/{resource}")
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def rules_of(name: str) -> list[dict[str, Any]]:
    """Rules for watched namespaces, as the chart's templates put them into roles."""
    rules: list[dict[str, Any]] = yaml.safe_load((CHART / "rbac" / f"{name}.yaml").read_text())
    return rules


def rules_written_in_the_template() -> list[dict[str, Any]]:
    """Those of all roles that stand in the template itself; its conditions taken as true."""
    lines = [line for line in (CHART / "templates/rbac.yaml").read_text().splitlines() if "{{-" not in line]
    documents = yaml.safe_load_all(re.sub(r"\{\{.*?\}\}", "x", "\n".join(lines)))
    return [rule for document in documents for rule in document.get("rules") or ()]


def test_every_method_of_the_port_has_a_use_here() -> None:
    methods = {name for name, _ in inspect.getmembers(Kube, inspect.isfunction) if not name.startswith("_")}

    assert set(USES) == methods


async def test_the_chart_gives_exactly_the_rights_that_the_adapter_uses() -> None:
    connection = RecordingConnection()
    for kind in Kind:
        kube = KubernetesApi(connection)  # type: ignore[arg-type]
        for name, use in USES.items():
            if name in MACHINE_ONLY and kind is not Kind.MACHINE:
                continue
            # Twice: an Event that repeats is patched.
            await use(kube, kind)
            await use(kube, kind)

    cluster = [rule for rule in rules_written_in_the_template() if rule["resources"] == ["namespaces"]]
    granted = rights(rules_of("objects") + rules_of("secrets") + cluster)
    assert connection.used | BESIDE_THE_ADAPTER == granted


def test_rights_on_secrets_stand_alone() -> None:
    """They are given elsewhere than the others where tenants share a cluster."""
    assert {rule["resources"] == ["secrets"] for rule in rules_of("secrets")} == {True}
    assert not any("secrets" in rule["resources"] for rule in rules_of("objects"))


def test_no_right_is_a_wildcard_and_secrets_are_never_listed() -> None:
    granted = rights(rules_of("objects") + rules_of("secrets") + rules_written_in_the_template())

    assert [right for right in granted if "*" in "".join(right)] == []
    assert {verb for verb, resource in granted if resource == "/secrets"} & {
        "list",
        "watch",
        "deletecollection",
    } == set()


class LeaseServer(RecordingConnection):
    """Keeps the one object that it is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.lease: dict[str, Any] | None = None

    async def request(self, method: str, path: str, what: str, **given: Any) -> Any:
        self.used.add(_as_rbac(method, path))
        if method != "GET":
            self.lease = given["body"]
        return self.lease


async def test_the_chart_gives_exactly_the_rights_that_the_lease_uses() -> None:
    connection = LeaseServer()
    lease = Lease(connection, "nixops-system", "nixops-operator", "me")  # type: ignore[arg-type]
    await lease.acquire()
    await lease.acquire()

    leases = [rule for rule in rules_written_in_the_template() if rule["resources"] == ["leases"]]
    assert connection.used == rights(leases)
