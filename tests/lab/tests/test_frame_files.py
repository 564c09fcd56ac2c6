"""What the lab writes and names: state, paths, environment, configuration of the control plane and of the operator."""

import json
import subprocess
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from nixops_lab import (
    cli,
    cluster,
    control,
    control_plane,
    environment,
    identities,
    lifecycle,
    operator_process,
    prerequisites,
    state,
)
from nixops_lab.paths import LabPaths
from nixops_lab.processes import Recorded
from nixops_lab.report import LabError
from nixops_lab.testing import Lines
from nixops_operator.settings import load as load_settings

PORTS = {"api": 1001, "ec2": 1002, "control": 1003, "operator": 1004}
GIB = 1024**3


@pytest.fixture
def paths(tmp_path: Path) -> LabPaths:
    return LabPaths.of(tmp_path / "lab")


class TestNames:
    def test_a_namespace_belongs_to_one_folder(self) -> None:
        assert LabPaths.of("/a/lab").namespace == LabPaths.of("/a/./lab").namespace
        assert LabPaths.of("/a/lab").namespace != LabPaths.of("/b/lab").namespace

    def test_the_folder_is_the_given_one_then_the_shells_then_the_default(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("LAB_DIR", "/from/shell")
        assert LabPaths.of("/given").folder == Path("/given")
        assert LabPaths.of(None).folder == Path("/from/shell")
        monkeypatch.delenv("LAB_DIR")
        assert LabPaths.of(None).folder == Path("/var/lib/nixops-lab/default")

    def test_a_symbolic_link_is_no_second_lab(self, tmp_path: Path) -> None:
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        assert LabPaths.of(tmp_path / "link") == LabPaths.of(tmp_path / "real")


class TestLines:
    def test_a_log_is_read_on_where_it_ended_and_by_whole_lines(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        lines = Lines(path)
        assert lines.entries() == []
        path.write_text('{"n": 1}\n{"n": ')
        before = lines.entries()
        with path.open("a") as file:
            file.write('"ü"}\n{"n": 3}\n')
        assert lines.entries() == lines.entries() == [{"n": 1}, {"n": "ü"}, {"n": 3}]
        assert before == [{"n": 1}]


class TestState:
    def test_it_comes_back_as_written(self, tmp_path: Path) -> None:
        written = state.State("starting", 7, PORTS).with_process("etcd", Recorded(42, 1234, "boot"))
        state.write(tmp_path / "state.json", written)
        assert state.read(tmp_path / "state.json") == written

    def test_nothing_started_is_none(self, tmp_path: Path) -> None:
        assert state.read(tmp_path / "state.json") is None

    def test_an_interrupted_start_is_no_running_lab(self, paths: LabPaths) -> None:
        paths.folder.mkdir()
        state.write(paths.state, state.State("starting", 0, PORTS))
        with pytest.raises(LabError, match="lab up"):
            lifecycle.running(paths)

    def test_mounts_below_the_lab_are_found_deepest_first(self) -> None:
        table = "a /lab/x ext4 rw 0 0\nb /lab/x/y\\040z tmpfs rw 0 0\nc /labyrinth tmpfs rw 0 0\nd / ext4 rw 0 0\n"
        assert lifecycle.mounts_below(Path("/lab"), table) == ["/lab/x/y z", "/lab/x"]


class TestEnvironment:
    def test_a_shell_reads_back_every_value(self, paths: LabPaths) -> None:
        values = {"A": "it's; $HOME `x`", "B": "ssh-ed25519 AAAA"}
        script = environment.export_lines(paths, values) + 'printf "%s\\n" "$A" "$B" "$PATH"'
        told = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True, env={"PATH": "/bin"})
        assert told.stdout.splitlines() == [*values.values(), f"{paths.programs}:/bin"]

    def test_a_persons_own_profile_and_proxy_do_not_reach_a_command_inside(
        self, paths: LabPaths, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_PROFILE", "work")
        monkeypatch.setenv("https_proxy", "http://proxy")
        inside = environment.inside(paths, {"KUBECONFIG": "/k"})
        assert inside["KUBECONFIG"] == "/k"
        assert not {"AWS_PROFILE", "https_proxy"} & inside.keys()

    def test_identities_are_made_once_and_tell_callers_apart(self, paths: LabPaths) -> None:
        first = identities.load(paths)
        assert identities.load(paths) == first
        assert len({first.person.id, first.operator.id, first.neighbour.id}) == 3
        assert first.client_public_key.split()[0] == first.host_public_key.split()[0] == "ssh-ed25519"
        assert paths.client_key.stat().st_mode & 0o077 == 0
        assert paths.identities.stat().st_mode & 0o077 == 0

    def test_a_lab_folder_of_before_the_neighbour_keeps_its_keys_and_gets_the_new_one(self, paths: LabPaths) -> None:
        first = identities.load(paths)
        stored = paths.identities / "access-keys.json"
        keys = json.loads(stored.read_text())
        del keys["neighbour"]
        stored.write_text(json.dumps(keys))
        again = identities.load(paths)
        assert (again.person, again.operator) == (first.person, first.operator)
        assert identities.load(paths) == again

    def test_user_data_holds_the_host_key_on_one_line(self, paths: LabPaths) -> None:
        who = identities.load(paths)
        public, private = identities.host_key_user_data(who).splitlines()
        assert public == f"SSH_HOST_ED25519_KEY_PUB:{who.host_public_key}"
        assert private.removeprefix("SSH_HOST_ED25519_KEY:").replace("|", "\n") == who.host_private_key.strip()


class TestControlPlane:
    def test_a_kubeconfig_names_one_server_and_one_token(self) -> None:
        config = yaml.safe_load(control_plane.kubeconfig(1001, "PEM", "secret", "admin", "ns"))
        assert config["clusters"][0]["cluster"]["server"] == "https://127.0.0.1:1001"
        assert config["users"] == [{"name": "admin", "user": {"token": "secret"}}]
        assert config["contexts"][0]["context"]["namespace"] == "ns"

    def test_the_audit_log_has_bodies_of_our_kinds_only(self) -> None:
        rules = control_plane.audit_policy()["rules"]
        assert isinstance(rules, list)
        with_bodies = [rule for rule in rules if rule["level"] not in {"None", "Metadata"}]
        assert [(rule["level"], rule["resources"]) for rule in with_bodies] == [
            ("RequestResponse", [{"group": "nixops.dev"}]),
            ("Request", [{"group": "nixops.dev"}]),
        ]

    def test_files_with_secrets_are_for_root_alone(self, paths: LabPaths) -> None:
        paths.folder.mkdir()
        control_plane.write_files(paths, control_plane.make_credentials(), 1001)
        written = [*paths.control_plane.iterdir(), paths.kubeconfig]
        assert {path.stat().st_mode & 0o077 for path in written} == {0}

    def test_only_rights_are_taken_from_the_chart(self) -> None:
        kinds = ["Deployment", "Role", "Secret", "ClusterRole", "ServiceAccount", "ConfigMap"]
        rendered = yaml.safe_dump_all([{"kind": kind, "metadata": {"name": "x"}} for kind in kinds])
        found = cluster.rights("---\n" + rendered + "---\n")
        assert [(one["kind"], one["metadata"].get("namespace")) for one in found] == [
            ("Role", "nixops-system"),
            ("ClusterRole", None),
            ("ServiceAccount", "nixops-system"),
        ]


class TestOperator:
    def test_settings_go_on_top_of_the_labs(self, paths: LabPaths) -> None:
        given = operator_process.parse_settings(
            ["resyncPeriod=1s", "aws.maxAttempts=3", "hosts.allowedCidrs=[10.0.0.0/8]"]
        )
        found = operator_process.configuration(paths, PORTS, given)
        assert found["resyncPeriod"] == "1s"
        assert found["aws"] == {"endpointUrl": "http://127.0.0.1:1002", "maxAttempts": 3}
        assert found["hosts"] == {"allowedCidrs": ["10.0.0.0/8"]}
        assert found["nix"] == {"nixpkgs": {"path": str(paths.nixpkgs)}, "substituters": []}

    @pytest.mark.parametrize("pair", ["novalue", "=5"])
    def test_a_setting_without_key_or_value_is_refused(self, pair: str) -> None:
        with pytest.raises(LabError, match="KEY=VALUE"):
            operator_process.parse_settings([pair])

    def test_a_setting_that_is_no_yaml_is_refused(self) -> None:
        with pytest.raises(LabError, match="no YAML"):
            operator_process.parse_settings(["a=*"])

    def test_a_knob_is_taken_as_it_stands(self) -> None:
        assert cli.parse_knobs(["silent.operator=*", "launch.dies=Client.InternalError:5"]) == {
            "silent.operator": "*",
            "launch.dies": "Client.InternalError:5",
        }

    @pytest.mark.parametrize("pair", ["visibility.ids", "=5"])
    def test_a_knob_without_name_or_value_is_refused(self, pair: str) -> None:
        with pytest.raises(LabError, match="NAME=VALUE"):
            cli.parse_knobs([pair])

    def test_a_setting_below_a_value_is_refused(self, paths: LabPaths) -> None:
        with pytest.raises(LabError, match="resyncPeriod is a value"):
            operator_process.configuration(paths, PORTS, {"resyncPeriod.seconds": 1})

    def test_the_environment_is_a_pods_not_the_callers(self, paths: LabPaths, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the caller's")
        found = operator_process.environment(paths, {"EXTRA": "1"})
        assert set(found) == {
            *("HOME", "USER", "PATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"),
            *("KUBECONFIG", "NIXOPS_CONFIG", "POD_NAMESPACE"),
            "EXTRA",
        }

    def test_the_checkouts_code_lies_over_the_installed_package(self, tmp_path: Path) -> None:
        place = "opt/nixops-operator/lib/python3.13/site-packages/nixops_operator"
        (tmp_path / place).mkdir(parents=True)
        assert operator_process.installed_package(tmp_path) == Path("/") / place

    def test_an_image_without_the_package_is_no_image_of_ours(self, tmp_path: Path) -> None:
        with pytest.raises(LabError, match="has no nixops_operator"):
            operator_process.installed_package(tmp_path)


class TestCommand:
    def test_what_follows_the_dashes_is_not_the_labs(self) -> None:
        assert cli.split(["run", "--dir", "/d", "--", "sh", "--", "-c"]) == (["run", "--dir", "/d"], ["sh", "--", "-c"])

    def test_the_folder_may_come_after_every_call(self) -> None:
        for words in (
            ["up"],
            ["env"],
            ["operator", "log", "-f"],
            ["machine", "exec", "x"],
            ["ec2", "set", "a=1"],
            ["down"],
        ):
            assert cli.parser().parse_args([*words, "--dir", "/d"]).dir == "/d"

    def test_a_lab_that_is_not_up_is_one_sentence_with_the_remedy(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.main(["env", "--dir", str(tmp_path)]) == 1
        assert (
            capsys.readouterr().err
            == f"lab: no lab is running in {tmp_path}: start it with `lab up --dir {tmp_path}`\n"
        )


class TestMachineNames:
    MACHINES = (
        {"name": "given-host", "private_address": "192.0.2.10"},
        {"name": "i-1", "private_address": "172.31.0.4"},
    )
    OBJECTS = (
        {"metadata": {"name": "web"}, "spec": {"target": {"ec2": {}}}, "status": {"instance": {"id": "i-1"}}},
        {"metadata": {"name": "old"}, "spec": {"target": {"host": {"address": "192.0.2.10"}}}},
        {"metadata": {"name": "new"}, "spec": {"target": {"ec2": {}}}, "status": {"observedGeneration": -1}},
    )

    @pytest.mark.parametrize(
        ("wanted", "found"), [("given-host", "given-host"), ("i-1", "i-1"), ("web", "i-1"), ("old", "given-host")]
    )
    def test_a_machine_answers_to_its_id_and_to_its_object(self, wanted: str, found: str) -> None:
        assert control.find_machine(wanted, self.MACHINES, self.OBJECTS)["name"] == found

    @pytest.mark.parametrize("wanted", ["new", "nobody"])
    def test_a_name_without_a_machine_says_which_there_are(self, wanted: str) -> None:
        with pytest.raises(LabError, match="given-host, i-1"):
            control.find_machine(wanted, self.MACHINES, self.OBJECTS)


class TestPrerequisites:
    GOOD: ClassVar[dict[str, object]] = {
        "system": "Linux",
        "machine": "x86_64",
        "uid": 0,
        "python": (3, 11),
        "free": {Path("/d"): 9 * GIB},
        "needed": 8 * GIB,
    }

    @pytest.mark.parametrize(
        ("change", "remedy"),
        [
            pytest.param({}, None, id="all is well"),
            pytest.param({"system": "Darwin"}, "use a Debian 12 machine", id="no Linux"),
            pytest.param({"machine": "riscv64"}, "use another machine", id="another processor"),
            pytest.param({"uid": 1000}, "sudo", id="not root"),
            pytest.param({"python": (3, 10)}, "LAB_PYTHON", id="old Python"),
            pytest.param({"free": {Path("/d"): GIB}}, "/d has 1.0 GB free and needs 8 GB", id="full disk"),
        ],
    )
    def test_each_complaint_names_its_remedy(self, change: dict[str, object], remedy: str | None) -> None:
        found = prerequisites.complaints(**{**self.GOOD, **change})
        assert len(found) == (0 if remedy is None else 1)
        assert remedy is None or remedy in found[0]

    def test_only_what_dpkg_does_not_know_as_installed_is_missing(self) -> None:
        listing = "".join(f"{name} installed\n" for name in prerequisites.PACKAGES if name not in {"jq", "curl"})
        assert prerequisites.missing_packages(listing + "jq config-files\n") == ["curl", "jq"]


def test_the_operator_accepts_the_labs_settings(
    paths: LabPaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(operator_process.configuration(paths, PORTS, {})))
    monkeypatch.setenv("NIXOPS_CONFIG", str(file))
    settings = load_settings()
    assert settings.aws.endpoint_url == "http://127.0.0.1:1002"
    assert settings.server.port == PORTS["operator"]
    # With an architecture in it, no type of the other one would ever find an image.
    assert settings.ec2.default_image.name == "nixos/25.11*"


class TestPackagePolicy:
    def test_no_service_is_started_while_packages_are_installed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        policy = tmp_path / "policy-rc.d"
        monkeypatch.setattr(prerequisites, "POLICY", policy)
        with prerequisites.no_services_started():
            assert subprocess.run([policy, "etcd", "start"], check=False).returncode == 101
        assert not policy.exists()

    def test_an_administrators_own_policy_stays(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        policy = tmp_path / "policy-rc.d"
        policy.write_text("own")
        monkeypatch.setattr(prerequisites, "POLICY", policy)
        with prerequisites.no_services_started():
            assert policy.read_text() == "own"
        assert policy.read_text() == "own"


def test_a_changed_or_new_file_of_the_chart_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("1")
    before = cluster.digest(tmp_path.rglob("*"))
    (tmp_path / "templates").mkdir()
    assert cluster.digest(tmp_path.rglob("*")) == before
    (tmp_path / "templates" / "b.yaml").write_text("")
    added = cluster.digest(tmp_path.rglob("*"))
    (tmp_path / "a.yaml").write_text("2")
    assert len({before, added, cluster.digest(tmp_path.rglob("*"))}) == 3
