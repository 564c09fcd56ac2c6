"""The chart: what it renders is taken by the API server, gives the rights that the operator uses, and no others."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
import yaml
from pydantic import BaseModel

from cluster.polling import eventually
from component.conftest import ACCOUNT, ROOT
from nixops_operator.names import DIGEST_KEY_SECRET, SIGNING_KEY_SECRET
from nixops_operator.settings import Settings

if TYPE_CHECKING:
    from component.conftest import ApiServer

CHART = ROOT / "helm/nixops-operator"
NAMESPACE = "nixops-system"


def template(
    server: ApiServer,
    values: dict[str, Any] | None = None,
    namespace: str = NAMESPACE,
    release: str = "nixops-operator",
) -> list[dict[str, Any]]:
    done = server.run(
        "helm", "template", release, str(CHART), "--namespace", namespace, "--values", "-",
        stdin=json.dumps(values or {}),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def refusal(server: ApiServer, values: dict[str, Any]) -> str:
    done = server.run("helm", "template", "x", str(CHART), "--values", "-", stdin=json.dumps(values))
    assert done.returncode != 0, f"accepted: {values}"
    return done.stderr


def of_kind(documents: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    (found,) = [document for document in documents if document["kind"] == kind]
    return found


@pytest.fixture(scope="module")
def namespaces(namespace: ApiServer) -> ApiServer:
    """The API server with two tenants' namespaces, too."""
    for name in ("shop", "other"):
        namespace.run("kubectl", "create", "namespace", name)
    return namespace


@pytest.fixture(scope="module")
def namespace(crds: ApiServer) -> ApiServer:
    """The API server with the operator's namespace, which admits restricted pods only."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}
    crds.kubectl("apply", "-f", "-", stdin=json.dumps(body))
    return crds


def test_lint(api_server: ApiServer) -> None:
    done = api_server.run("helm", "lint", "--strict", str(CHART))

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({}, id="defaults"),
        pytest.param(
            {"rbac": {"create": False}, "serviceAccount": {"create": False, "name": "mine"}}, id="own account"
        ),
        pytest.param({"crds": {"enabled": False}, "replicaCount": 0}, id="without CRDs and pods"),
        pytest.param(
            {
                "image": {"digest": "sha256:" + "0" * 64},
                "commonLabels": {"team": "x"},
                "podLabels": {"a": "b"},
                "podAnnotations": {"c": "d"},
                "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::123456789012:role/x"}},
                "store": {"existingClaim": "nix"},
                "imagePullSecrets": [{"name": "pull"}],
                "nodeSelector": {"kubernetes.io/arch": "amd64"},
                "tolerations": [{"operator": "Exists"}],
                "affinity": {"nodeAffinity": {}},
                "extraEnv": [{"name": "AWS_REGION", "value": "us-west-2"}],
                "extraVolumes": [{"name": "nixpkgs", "emptyDir": {}}],
                "extraVolumeMounts": [{"name": "nixpkgs", "mountPath": "/nixpkgs"}],
                "config": {"clusterId": "blue", "server": {"port": 9090}, "hosts": {"allowedCidrs": ["192.0.2.0/24"]}},
            },
            id="everything set",
        ),
        pytest.param(
            {"rbac": {"secrets": "OptIn"}, "config": {"watch": {"namespaces": ["shop", "other", NAMESPACE]}}},
            id="some namespaces, its own among them",
        ),
        pytest.param(
            {"fullnameOverride": "f" * 100, "rbac": {"secrets": "OptIn"}}, id="a name longer than names may be"
        ),
        pytest.param({"nameOverride": "n" * 100}, id="a name longer than labels may be"),
    ],
)
def test_the_api_server_takes_it(namespaces: ApiServer, values: dict[str, Any]) -> None:
    rendered = yaml.safe_dump_all(template(namespaces, values))

    namespaces.kubectl("apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict",
                       "-f", "-", stdin=rendered)  # fmt: skip


def test_the_pod_is_restricted(namespace: ApiServer) -> None:
    """Judged by the API server's own admission, which looks at pods, not at Deployments."""
    pod = of_kind(template(namespace), "Deployment")["spec"]["template"]
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "namespace": NAMESPACE}, "spec": pod["spec"]}

    namespace.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(body))

    pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = True
    assert "violates PodSecurity" in namespace.refusal("create", "--dry-run=server", "-f", "-", stdin=json.dumps(body))


def test_the_crds_are_those_of_the_repository_and_stay(api_server: ApiServer) -> None:
    rendered = {d["metadata"]["name"]: d for d in template(api_server) if d["kind"] == "CustomResourceDefinition"}

    for path in (ROOT / "crds").glob("*.yaml"):
        own = yaml.safe_load(path.read_text())
        copy = rendered.pop(own["metadata"]["name"])
        assert copy["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        assert copy == own
    assert rendered == {}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param({}, {"maxSize": "20Gi"}, id="the limit of its volume"),
        pytest.param({"store": {"sizeLimit": "7Gi"}}, {"maxSize": "7Gi"}, id="another one"),
        pytest.param({"store": {"existingClaim": "nix"}}, None, id="a claim has a disk of its own"),
        pytest.param({"config": {"nix": {"store": {"maxSize": 5}}}}, {"maxSize": 5}, id="what is set counts"),
    ],
)
def test_the_store_is_collected_before_the_kubelet_evicts_the_pod(
    api_server: ApiServer, values: dict[str, Any], expected: dict[str, Any] | None
) -> None:
    config = yaml.safe_load(of_kind(template(api_server, values), "ConfigMap")["data"]["config.yaml"])
    assert config["nix"].get("store") == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param({}, "20Gi", id="the limit of its volume"),
        pytest.param({"scratch": {"sizeLimit": "7Gi"}}, "7Gi", id="another one"),
        pytest.param({"config": {"nix": {"scratch": {"maxSize": 5}}}}, 5, id="what is set counts"),
    ],
)
def test_builds_end_before_the_kubelet_evicts_the_pod(
    api_server: ApiServer, values: dict[str, Any], expected: object
) -> None:
    config = yaml.safe_load(of_kind(template(api_server, values), "ConfigMap")["data"]["config.yaml"])
    assert config["nix"]["scratch"] == {"maxSize": expected}


def test_no_crds_if_they_come_from_elsewhere(api_server: ApiServer) -> None:
    kinds = {document["kind"] for document in template(api_server, {"crds": {"enabled": False}})}

    assert "CustomResourceDefinition" not in kinds


OBJECTS = {
    "nixdeployments.nixops.dev": "get list watch patch",
    "nixmachines.nixops.dev": "get list watch create patch delete",
    "nixdeployments.nixops.dev/status": "patch",
    "nixmachines.nixops.dev/status": "patch",
    "nixdeployments.nixops.dev/finalizers": "update",
    "nixmachines.nixops.dev/finalizers": "update",
    "configmaps": "get",
    "events": "create patch",
}
SECRETS = {"secrets": "get create patch delete"}
VERBS = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"]
RIGHTS = ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")


@contextmanager
def granted(server: ApiServer, values: dict[str, Any]) -> Iterator[None]:
    """The rights of a release with these values, and no others."""
    documents = yaml.safe_dump_all([d for d in template(server, values) if d["kind"] in RIGHTS])
    server.kubectl("apply", "-f", "-", stdin=documents)
    try:
        yield
    finally:
        server.kubectl("delete", "--ignore-not-found", "-f", "-", stdin=documents)


def rights_in(server: ApiServer, namespace: str) -> dict[str, str]:
    """Resource → verbs that the operator may use there, of those that it may use anywhere."""
    asked = [(resource, verb) for resource in OBJECTS | SECRETS for verb in VERBS]
    answers = may(server, [(verb, resource, "", namespace) for resource, verb in asked])
    allowed: dict[str, list[str]] = {}
    for (resource, verb), is_allowed in zip(asked, answers, strict=True):
        if is_allowed:
            allowed.setdefault(resource, []).append(verb)
    return {resource: " ".join(verbs) for resource, verbs in allowed.items()}


Question = tuple[str, str, str, str]
"""Verb, `<resource>[.<group>][/<subresource>]`, name, namespace; the last two may be empty."""


def may(server: ApiServer, questions: list[Question]) -> list[bool]:
    """Whether the operator may do each of it; one call of kubectl for all."""
    reviews = []
    for verb, what, name, namespace in questions:
        plain, _, subresource = what.partition("/")
        resource, _, group = plain.partition(".")
        attributes = {"verb": verb, "group": group, "resource": resource, "subresource": subresource, "name": name}
        reviews.append(
            {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SubjectAccessReview",
                "spec": {
                    "user": ACCOUNT,
                    "groups": ["system:serviceaccounts", "system:authenticated"],
                    "resourceAttributes": {**attributes, "namespace": namespace},
                },
            }
        )
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": reviews})
    words = server.kubectl("create", "--output=jsonpath={.status.allowed} ", "--filename=-", stdin=text).split()
    return [word == "true" for word in words]


OWN = {"secrets": "create"}
"""In the operator's own namespace, where it makes its own keys."""


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param(
            {}, {"shop": OBJECTS | SECRETS, "kube-system": OBJECTS | SECRETS}, id="the whole cluster, Secrets included"
        ),
        pytest.param(
            {"rbac": {"secrets": "OptIn"}},
            {"shop": OBJECTS, "kube-system": OBJECTS, NAMESPACE: OBJECTS | OWN},
            id="the whole cluster, no Secret until a namespace opts in",
        ),
        pytest.param(
            {"config": {"watch": {"namespaces": ["shop"]}}},
            {"shop": OBJECTS | SECRETS, "other": {}, "kube-system": {}, NAMESPACE: OWN},
            id="one namespace",
        ),
        pytest.param(
            {"config": {"watch": {"namespaces": ["shop"]}}, "rbac": {"secrets": "OptIn"}},
            {"shop": OBJECTS, "other": {}},
            id="one namespace, no Secret until it opts in",
        ),
    ],
)
def test_the_operator_may_do_just_this(
    namespaces: ApiServer, values: dict[str, Any], expected: dict[str, dict[str, str]]
) -> None:
    def allowed() -> dict[str, dict[str, str]]:
        return {namespace: rights_in(namespaces, namespace) for namespace in expected}

    with granted(namespaces, values):
        # The API server learns of roles by a watch of its own.
        eventually(lambda: allowed() == expected, f"the rights are {expected}", last=allowed)


def test_a_namespace_opts_in_with_the_line_of_the_values(namespaces: ApiServer) -> None:
    text = (CHART / "values.yaml").read_text()
    found = re.search(r"kubectl (create rolebinding .*?)\\\n +# +(.*)\n", text)
    assert found is not None
    command = f"{found[1]} {found[2]}".replace("NAMESPACE", "shop").split()

    def allowed() -> dict[str, dict[str, str]]:
        return {namespace: rights_in(namespaces, namespace) for namespace in ("shop", "other")}

    with granted(namespaces, {"rbac": {"secrets": "OptIn"}}):
        namespaces.kubectl(*command)
        try:
            expected = {"shop": OBJECTS | SECRETS, "other": OBJECTS}
            eventually(lambda: allowed() == expected, f"the rights are {expected}", last=allowed)
        finally:
            namespaces.kubectl("delete", "rolebinding", command[2], "--namespace=shop")


NARROW = [
    pytest.param("get", "namespaces", "kube-system", "", True, id="the cluster's identity"),
    pytest.param("get", "namespaces", "default", "", False, id="no other namespace"),
    pytest.param("get", "secrets", SIGNING_KEY_SECRET, NAMESPACE, True, id="its signing key"),
    pytest.param("get", "secrets", DIGEST_KEY_SECRET, NAMESPACE, True, id="what it keys digests with"),
    pytest.param("get", "secrets", "other", NAMESPACE, False, id="no other Secret beside it"),
    pytest.param("update", "leases.coordination.k8s.io", "nixops-operator", NAMESPACE, True, id="its Lease"),
    pytest.param("update", "leases.coordination.k8s.io", "other", NAMESPACE, False, id="no other Lease"),
    pytest.param("create", "leases.coordination.k8s.io", "", "default", False, id="no Lease elsewhere"),
    pytest.param("create", "pods", "", "default", False, id="no pods"),
    pytest.param("update", "customresourcedefinitions.apiextensions.k8s.io", "", "", False, id="no CRDs"),
]


@pytest.fixture(scope="module")
def narrowly(namespaces: ApiServer) -> Iterator[ApiServer]:
    with granted(namespaces, {"rbac": {"secrets": "OptIn"}}):
        expected = [case.values[4] for case in NARROW]
        questions = [cast("Question", case.values[:4]) for case in NARROW]
        eventually(lambda: may(namespaces, questions) == expected, "the API server has learned of the roles")
        yield namespaces


@pytest.mark.parametrize(("verb", "resource", "name", "place", "expected"), NARROW)
def test_rights_are_narrow(
    narrowly: ApiServer, verb: str, resource: str, name: str, place: str, expected: bool
) -> None:
    assert may(narrowly, [(verb, resource, name, place)]) == [expected]


def test_of_listed_namespaces_only_the_cluster_s_identity_is_read_beyond_them(api_server: ApiServer) -> None:
    config = {"watch": {"namespaces": ["shop"]}}

    rules = of_kind(template(api_server, {"config": config}), "ClusterRole")["rules"]
    named = template(api_server, {"config": config | {"clusterId": "blue"}})

    assert [(rule["resources"], rule["resourceNames"], rule["verbs"]) for rule in rules] == [
        (["namespaces"], ["kube-system"], ["get"])
    ]
    assert {document["kind"] for document in named} & {"ClusterRole", "ClusterRoleBinding"} == set()


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"replicaCount": 2}, id="two replicas"),
        pytest.param({"replicas": 1}, id="a typo"),
        pytest.param({"config": {"resyncPeriod": 60}}, id="a duration without a unit"),
        pytest.param({"config": {"hosts": {"allowedCidr": []}}}, id="a typo in config"),
        pytest.param({"config": {"ec2": {"defaultImage": {"owner": 427812963091}}}}, id="an account id as a number"),
        pytest.param({"image": {"digest": "latest"}}, id="a digest that is none"),
        pytest.param({"rbac": {"secrets": "Everywhere"}}, id="a place for Secrets that is none"),
        pytest.param({"config": {"watch": {"namespaces": ["team-*"]}}}, id="a pattern of namespaces"),
    ],
)
def test_wrong_values_are_refused(api_server: ApiServer, values: dict[str, Any]) -> None:
    assert "values don't meet the specifications of the schema" in refusal(api_server, values)


def _keys(model: type[BaseModel]) -> dict[str, Any]:
    """Setting → its parts, or {} for a leaf."""
    keys = {}
    for name, field in model.model_fields.items():
        inner = [part for part in (field.annotation, *getattr(field.annotation, "__args__", ())) if _is_model(part)]
        keys[field.alias or name] = _keys(inner[0]) if inner else {}
    return keys


def _is_model(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _schema_keys(schema: dict[str, Any]) -> dict[str, Any]:
    return {name: _schema_keys(part.get("items", part)) for name, part in schema.get("properties", {}).items()}


def test_the_schema_knows_exactly_the_operator_s_settings() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())

    assert _schema_keys(schema["properties"]["config"]) == _keys(Settings)


def test_the_operator_reads_the_settings(
    api_server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"hosts": {"allowedCidrs": ["192.0.2.0/24"]}, "resyncPeriod": "5s"}
    text = of_kind(template(api_server, {"config": config}), "ConfigMap")["data"]["config.yaml"]
    (tmp_path / "config.yaml").write_text(text)
    for name in [name for name in os.environ if name.startswith("NIXOPS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NIXOPS_CONFIG", str(tmp_path / "config.yaml"))

    settings = Settings()

    assert settings.resync_period.total_seconds() == 5
    assert [str(network) for network in settings.hosts.allowed_cidrs] == ["192.0.2.0/24"]
    assert settings.lease.namespace == NAMESPACE


@pytest.mark.parametrize("name", ["2024", "on", "0x10"])
def test_a_name_that_yaml_would_read_as_something_else_stays_a_name(api_server: ApiServer, name: str) -> None:
    """Of namespaces for instance that are called by a number, or by the beginning of a commit's hash."""
    values = {
        "fullnameOverride": name,
        "nameOverride": name,
        "priorityClassName": name,
        "serviceAccount": {"name": name},
        "store": {"existingClaim": name},
        "config": {"watch": {"namespaces": [name]}, "lease": {"namespace": name, "name": name}},
    }

    found = list(_leaves(template(api_server, values, namespace=name, release=name)))

    named = [
        (path, value) for path, value in found if re.search(r"([nN]ame(space)?|instance|resourceNames\[0\])$", path)
    ]
    assert [(path, value) for path, value in named if not isinstance(value, str)] == []
    assert [value for _, value in named].count(name) > 20


def _leaves(of: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Path → value of all that is no list and no mapping."""
    match of:
        case dict():
            for key, value in of.items():
                yield from _leaves(value, f"{path}.{key}")
        case list():
            for place, value in enumerate(of):
                yield from _leaves(value, f"{path}[{place}]")
        case _:
            yield path, of


def test_the_same_values_render_the_same(api_server: ApiServer) -> None:
    assert template(api_server) == template(api_server)


def test_no_volume_grows_without_bound(api_server: ApiServer) -> None:
    """A node without room harms all that runs on it."""
    pod = of_kind(template(api_server), "Deployment")["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"] if "emptyDir" in volume}

    assert sorted(volumes) == ["home", "store", "tmp"]
    assert [name for name, volume in volumes.items() if "sizeLimit" not in volume] == []


def test_changed_settings_restart_the_pod(api_server: ApiServer) -> None:
    def checksum(values: dict[str, Any]) -> str:
        metadata = of_kind(template(api_server, values), "Deployment")["spec"]["template"]["metadata"]
        return str(metadata["annotations"]["checksum/config"])

    assert checksum({}) == checksum({})
    assert checksum({}) != checksum({"config": {"workers": 2}})


def test_the_image_is_named_by_digest_if_there_is_one(api_server: ApiServer) -> None:
    digest = "sha256:" + "a" * 64

    def image(values: dict[str, Any]) -> str:
        pod = of_kind(template(api_server, values), "Deployment")["spec"]["template"]["spec"]
        return str(pod["containers"][0]["image"])

    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert image({}) == f"nixops-operator:{version}"
    assert image({"image": {"repository": "example.org/nixops", "digest": digest}}) == f"example.org/nixops@{digest}"


def test_the_version_is_the_package_s() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)

    assert project is not None
    assert chart["appVersion"] == project[1]


def test_an_uninstalled_release_leaves_the_definitions_and_with_them_the_machines(namespace: ApiServer) -> None:
    release = ("nixops-operator", "--namespace", NAMESPACE)
    machine = (ROOT / "tests/data/valid/machine-that-exists.yaml").read_text()
    namespace.kubectl("create", "--namespace", NAMESPACE, "-f", "-", stdin=machine)
    # The definitions are there already, applied by kubectl.
    installed = namespace.run(
        "helm", "install", *release, str(CHART), "--take-ownership", "--force-conflicts", "--wait=hookOnly"
    )
    assert installed.returncode == 0, installed.stderr
    assert "Machines with target.host are refused: config.hosts.allowedCidrs names no network." in installed.stdout

    removed = namespace.run("helm", "uninstall", *release)

    assert removed.returncode == 0, removed.stderr
    assert "box" in namespace.kubectl("get", "nixm", "--namespace", NAMESPACE, "--no-headers")
    assert "not found" in namespace.refusal("get", "deployment", "nixops-operator", "--namespace", NAMESPACE)
