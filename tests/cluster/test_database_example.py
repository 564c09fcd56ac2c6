"""The example of examples/database, as its users have it.

Shown is what the operator does for it: volume, address, key, health check, groups. The miniature nixpkgs has no
PostgreSQL: STAND_IN listens in its place. That the configuration evaluates on a whole nixpkgs is shown in
tests/contract/on_a_real_nixpkgs.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.place import Place
from cluster.polling import eventually
from nixops_lab.machines.wires import CLIENT_ADDRESS
from nixops_lab.paths import CHECKOUT

pytestmark = pytest.mark.long(instead="cluster/test_model_examples.py")

DEPLOYMENT, MACHINE = "shop", "shop-database"
KEY = "/run/keys/shop-password"
AS_LOGGED_IN = "/run/postgresql/password"
STAND_IN = f"""{{ config, lib, pkgs, ... }}: {{
  options.services.postgresql = lib.genAttrs [ "enable" "enableTCPIP" "ensureDatabases" "ensureUsers" "authentication" ]
    (_: lib.mkOption {{ }}) // {{
      package = lib.mkOption {{
        # With a statement as argument it answers while the server runs; else it is given a password to set.
        default = pkgs.writeShellScriptBin "psql" ''
          case "$*" in
            *--command=*) exec systemctl is-active --quiet postgresql.service ;;
            *) exec /bin/sh -c "$(sed -n 's/.*\\\\set password `\\(.*\\)`/\\1/p')" >{AS_LOGGED_IN} ;;
          esac
        '';
      }};
    }};
  config = {{
    users.users.postgres = {{ isSystemUser = true; group = "postgres"; }};
    users.groups.postgres = {{ }};
    environment.systemPackages = [ config.services.postgresql.package ];
    systemd.services.postgresql = {{
      wantedBy = [ "multi-user.target" ];
      serviceConfig = {{ Type = "exec"; User = "postgres"; RuntimeDirectory = "postgresql"; }};
      script = ''
        exec /usr/bin/perl -MIO::Socket::INET -e '
          my $server = IO::Socket::INET->new(LocalPort => 5432, Listen => 5, ReuseAddr => 1) or die $@;
          while (my $client = $server->accept) {{ close $client }}'
      '';
    }};
  }};
}}"""
WITH_STAND_IN = {
    "resources": ["../database"],
    "configMapGenerator": [{"name": "shop-configuration", "behavior": "merge", "files": ["stand-in.nix"]}],
    "patches": [
        {
            "target": {"kind": "NixDeployment"},
            "patch": yaml.safe_dump(
                [{"op": "add", "path": "/spec/machines/0/configuration/modules/-", "value": {"path": "stand-in.nix"}}]
            ),
        }
    ],
}


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """A copy of the example, under a kustomization that adds the stand-in; returns the latter's folder."""
    shutil.copytree(CHECKOUT / "examples/database", tmp_path / "database")
    overlay = tmp_path / "in-the-lab"
    overlay.mkdir()
    (overlay / "stand-in.nix").write_text(STAND_IN)
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(WITH_STAND_IN))
    return overlay


def admit(example: Path, cidr: str) -> None:
    """The edit of nixdeployment.yaml that the README asks for."""
    file = example.parent / "database/nixdeployment.yaml"
    before = file.read_text()
    file.write_text(before.replace("192.0.2.0/24", cidr))
    assert file.read_text() != before


def apply_and_wait(place: Place, example: Path) -> None:
    place.kubectl("apply", "--kustomize", str(example))
    place.wait_ready(f"nixdeployment/{DEPLOYMENT}")


def is_let_in(place: Place, address: str) -> bool:
    knock = ["timeout", "3", "bash", "-c", f"exec 3<>/dev/tcp/{address}/5432"]
    return place.lab.run(knock, check=False).returncode == 0


def of_ours(place: Place, kind: str) -> list[dict[str, Any]]:
    """`Volumes` or `Addresses` of this namespace."""
    ours = [{"Name": "tag:nixops.dev:namespace", "Values": [place.namespace]}]
    return list(getattr(place.ec2, f"describe_{kind.lower()}")(Filters=ours)[kind])


def test_a_database_server(place: Place, example: Path) -> None:
    place.aws_secret()
    place.kubectl("create", "secret", "generic", "shop-password", "--from-literal=password=first")
    apply_and_wait(place, example)

    (instance,) = place.live_instances()
    attached = [(one, each) for one in of_ours(place, "Volumes") for each in one["Attachments"]]
    ((volume, attachment),) = [(one, each) for one, each in attached if each["Device"] == "/dev/sdf"]
    assert (volume["Size"], volume["Encrypted"]) == (20, True)
    assert (attachment["InstanceId"], attachment["State"]) == (instance["InstanceId"], "attached")
    assert not attachment["DeleteOnTermination"]
    disk = f"/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_{volume['VolumeId'].replace('-', '')}"
    mounted = ["findmnt", "--noheadings", "--output", "SOURCE,FSTYPE", "/var/lib/postgresql"]
    assert place.on(MACHINE, *mounted).split() == [place.on(MACHINE, "readlink", "-f", disk), "ext4"]
    (elastic,) = of_ours(place, "Addresses")
    address = elastic["PublicIp"]
    assert elastic["InstanceId"] == instance["InstanceId"]
    assert place.get("nixmachine", MACHINE)["status"]["addresses"]["ssh"] == address
    assert place.on(MACHINE, "stat", "-c", "%a %U", KEY) == "400 postgres"
    assert place.on(MACHINE, "cat", KEY) == place.on(MACHINE, "cat", AS_LOGGED_IN) == "first"

    assert not is_let_in(place, address)
    admit(example, f"{CLIENT_ADDRESS}/32")
    apply_and_wait(place, example)
    eventually(lambda: is_let_in(place, address), "its clients are let in")

    place.secret("shop-password", {"password": "second"})
    place.ask_to_look(f"nixmachine/{MACHINE}")
    eventually(lambda: place.on(MACHINE, "cat", AS_LOGGED_IN) == "second", "the other password is set")

    place.on(MACHINE, "systemctl", "stop", "postgresql.service")
    place.await_condition("nixmachine", MACHINE, {"Healthy": "False/CheckFailed", "Ready": "False/CheckFailed"})
    place.on(MACHINE, "systemctl", "start", "postgresql.service", "shop-role.service")
    place.wait_ready(f"nixdeployment/{DEPLOYMENT}")

    place.kubectl("delete", "--kustomize", str(example), "--timeout=90s")
    assert place.left_in_ec2() == []
    assert of_ours(place, "Addresses") == []
    (kept,) = of_ours(place, "Volumes")
    assert (kept["VolumeId"], kept["State"]) == (volume["VolumeId"], "available")
    assert {"Key": "nixops.dev:retained", "Value": "true"} in kept["Tags"]
    place.ec2.delete_volume(VolumeId=kept["VolumeId"])
