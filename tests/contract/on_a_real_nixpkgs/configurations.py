"""Configurations as people write them, and their mistakes, on a real nixpkgs. Evaluation only: nothing is built."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from contract.nix_bench import request, store
from nixops_operator.adapters.nix.sandboxed_nix import SandboxedNix
from nixops_operator.errors import Blocked
from nixops_operator.facts.nix import Evaluation, Facts, KeyFile, Module, Peer, Source
from nixops_operator.shared_facts import address_path

EXAMPLES = Path(__file__).parents[3] / "examples"
EXAMPLE = EXAMPLES / "valgrind-docs"
A_HOST = """{
  fileSystems."/" = { device = "/dev/sda1"; fsType = "ext4"; };
  boot.loader.grub.device = "/dev/sda";
  services.openssh.enable = true;
  system.stateVersion = "20.03";
}"""

NGINX_WITH_ACME = """{
  services.nginx.enable = true;
  services.nginx.recommendedTlsSettings = true;
  services.nginx.virtualHosts."example.org" = { enableACME = true; forceSSL = true; root = "/var/www"; };
  security.acme = { acceptTerms = true; email = "webmaster@example.org"; };
  networking.firewall.allowedTCPPorts = [ 80 443 ];
}"""
POSTGRESQL = """{ pkgs, ... }: {
  services.postgresql = {
    enable = true;
    package = pkgs.postgresql_11;
    ensureDatabases = [ "site" ];
    ensureUsers = [ { name = "site"; ensurePermissions."DATABASE site" = "ALL PRIVILEGES"; } ];
  };
  services.postgresqlBackup = { enable = true; databases = [ "site" ]; };
}"""

# Two networks in NixOps' way: `defaults`, a web server behind a load balancer, a database with its disk.
DEFAULTS = """{ pkgs, deploymentName, ... }: {
  deployment.targetEnv = "ec2";
  deployment.ec2.region = "eu-west-1";
  deployment.ec2.tags.Network = deploymentName;
  deployment.owners = [ "ops@example.org" ];
  environment.systemPackages = [ pkgs.htop pkgs.tmux ];
  users.users.deployer = { isNormalUser = true; extraGroups = [ "wheel" ]; };
}"""
BALANCER = """{ resources, ... }: {
  imports = [ <nixpkgs/nixos/modules/profiles/headless.nix> <nixpkgs/nixos/modules/virtualisation/amazon-image.nix> ];
  deployment.ec2.instanceType = "t2.small";
  deployment.ec2.keyPair = resources.ec2KeyPairs.main;
  deployment.ec2.securityGroups = [ resources.ec2SecurityGroups.web "default" ];
  deployment.ec2.elasticIPv4 = resources.elasticIPs.web;
  services.haproxy = { enable = true; config = "listen web\\n bind *:80\\n server a 10.0.0.2:80"; };
}"""
DATABASE = """{ config, pkgs, uuid, ... }: with import <nixpkgs/lib>; {
  deployment.ec2 = { instanceType = "m4.large"; ebsInitialRootDiskSize = 50; associatePublicIpAddress = true; };
  deployment.hasFastConnection = true;
  deployment.keys.db-password = { user = "mysql"; group = "mysql"; permissions = "0640"; };
  fileSystems."/data" = {
    device = "/dev/xvdf"; fsType = "ext4"; autoFormat = true;
    ec2 = { size = 100; volumeType = "gp2"; deleteOnTermination = false; };
  };
  services.mysql = { enable = true; package = pkgs.mariadb; dataDir = "/data/mysql"; };
  systemd.services.mysql.after = [ "db-password-key.service" ];
  environment.systemPackages = optional (versionAtLeast version "18.09") (import <nixpkgs> { }).jq;
  environment.etc.network.text = "${uuid} ${config.deployment.keys.db-password.path} ${config.deployment.ec2.tenancy}";
}"""


async def evaluated(nix: SandboxedNix, nixpkgs: Source, *texts: str, is_ec2: bool = True) -> Evaluation:
    return await nix.evaluate(replace(request(nixpkgs, *texts), is_ec2=is_ec2, state_version="20.03"))


async def closure(evaluation: Evaluation) -> dict[str, Path]:
    """The derivations that the system is made of: name → one of that name."""
    paths = (await store("nix-store", "--query", "--requisites", evaluation.drv_path)).splitlines()
    return {path[len("/nix/store/") + 33 :]: Path(path) for path in paths}


async def test_the_model_example(nix: SandboxedNix, nixpkgs: Source) -> None:
    module = (EXAMPLE / "machine/configuration.nix").read_text()
    evaluation = await evaluated(nix, nixpkgs, module)
    names = await closure(evaluation)
    assert "-nixos-system-webserver-" in evaluation.toplevel
    assert len(names) > 1000
    assert any(name.startswith("valgrind-") for name in names)
    assert any(name.startswith("apache-httpd-") for name in names)
    assert any(name.startswith("inotify-tools-") for name in names)
    assert evaluation.warnings == ()


async def test_the_model_example_on_a_given_host(nix: SandboxedNix, nixpkgs: Source) -> None:
    source = await nix.add_tree(
        {
            "configuration.nix": (EXAMPLE / "machine/configuration.nix").read_bytes(),
            "hardware-configuration.nix": (EXAMPLE / "targets/existing-host/hardware-configuration.nix").read_bytes(),
        }
    )
    files = ("configuration.nix", "hardware-configuration.nix")
    wanted = replace(
        request(nixpkgs, source=source),
        modules=tuple(Module(name, path=name) for name in files),
        is_ec2=False,
        state_version=None,
    )
    assert "-nixos-system-webserver-" in (await nix.evaluate(wanted)).toplevel


async def test_the_example_of_a_database(nix: SandboxedNix, nixpkgs: Source) -> None:
    module = (EXAMPLES / "database/configuration.nix").read_text()
    password = KeyFile("shop-password", "/run/keys/shop-password", "postgres", "root", "0400", is_first=True)
    wanted = replace(request(nixpkgs, module), keys=(password,), state_version="20.03")
    evaluation = await nix.evaluate(wanted)
    names = await closure(evaluation)
    assert {f"unit-{unit}.service.drv" for unit in ("postgresql", "shop-role", "shop-password-key")} <= names.keys()
    assert "/dev/sdf /var/lib/postgresql ext4 " in names["etc-fstab.drv"].read_text()
    assert evaluation.warnings == ()


@pytest.mark.parametrize(
    ("module", "part"),
    [
        pytest.param(NGINX_WITH_ACME, "unit-acme-example.org.service.drv", id="nginx with ACME"),
        pytest.param(POSTGRESQL, "unit-postgresql.service.drv", id="PostgreSQL"),
    ],
)
@pytest.mark.parametrize("is_ec2", [True, False], ids=["on EC2", "on a host"])
async def test_an_ordinary_server(nix: SandboxedNix, nixpkgs: Source, module: str, part: str, is_ec2: bool) -> None:
    more = () if is_ec2 else (A_HOST,)
    assert part in await closure(await evaluated(nix, nixpkgs, module, *more, is_ec2=is_ec2))


@pytest.mark.parametrize(
    ("module", "part", "said"),
    [
        pytest.param(BALANCER, "unit-haproxy.service.drv", "ec2, owners, targetEnv", id="a load balancer"),
        pytest.param(
            DATABASE, "unit-mysql.service.drv", "ec2, hasFastConnection, keys, owners, targetEnv", id="a database"
        ),
    ],
)
async def test_a_machine_of_a_nixops_network(
    nix: SandboxedNix, nixpkgs: Source, module: str, part: str, said: str
) -> None:
    evaluation = await evaluated(nix, nixpkgs, DEFAULTS, module)
    assert part in await closure(evaluation)
    (warning,) = (text for text in evaluation.warnings if text.startswith("deployment."))
    assert sorted(re.findall(r"\w+", warning.partition("}")[0])[1:]) == said.split(", ")


async def test_what_reads_nothing_of_others_depends_on_nothing(nix: SandboxedNix, nixpkgs: Source) -> None:
    """The manual with the options of all modules in it is made without a look at their defaults."""
    with_manual = "{ documentation.nixos.includeAllModules = true; }"
    assert (await evaluated(nix, nixpkgs, DEFAULTS, BALANCER, with_manual)).told == {}


async def test_two_machines_of_a_network_read_each_other(nix: SandboxedNix, nixpkgs: Source) -> None:
    reads = """{ nodes, ... }: {
      services.haproxy = {
        enable = true;
        config = "server db ${nodes.db.config.networking.privateIPv4}:${toString nodes.db.config.services.mysql.port}";
      };
    }"""
    database = replace(request(nixpkgs, DEFAULTS, DATABASE), name="db", state_version="20.03")
    known = {"nodes": '["db", "webserver"]', address_path("db", "privateIPv4"): '"10.0.0.5"'}
    facts = Facts(known, {"db": Peer(database, "evaluate:db")})
    wanted = replace(request(nixpkgs, DEFAULTS, reads), state_version="20.03", facts=facts)
    evaluation = await nix.evaluate(wanted)
    assert set(evaluation.told) == {"nodes", "nodes.db", address_path("db", "privateIPv4")}
    assert "unit-haproxy.service.drv" in await closure(evaluation)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        pytest.param("{\n  x = = 1;\n}", r"modules\[0\]:2:7: syntax error, unexpected '='", id="syntax"),
        pytest.param(
            "{\n  services.htpd.enable = true;\n}",
            r"modules\[0\]:2: The option `services\.htpd' (defined in .* )?does not exist\.",
            id="unknown option",
        ),
        pytest.param(
            '{\n  services.httpd.enable = "yes";\n}',
            r"modules\[0\]:2: .*option.* `services\.httpd\.enable' .*is not of type `boolean'",
            id="type",
        ),
        pytest.param(
            '{\n  networking.hostName = "a";\n  imports = [ { networking.hostName = "b"; } ];\n}',
            r"The option `networking\.hostName' has conflicting definition.*modules\[0\]",
            id="conflict",
        ),
        pytest.param(
            '{ config, ... }: {\n  networking.hostName = "x" + config.networking.hostName;\n}',
            r"modules\[0\]:2(:\d+)?: infinite recursion encountered",
            id="infinite recursion",
        ),
        pytest.param(
            "{\n  services.gitlab.enable = true;\n}",
            r"Failed assertions: services\.gitlab\.",
            id="an assertion of nixpkgs",
        ),
        pytest.param(
            "{ pkgs, ... }: {\n  environment.systemPackages = [ pkgs.unrar ];\n}",
            r"modules\[0\]:2: .*unrar.* unfree license.*nixpkgs\.config\.allowUnfree = true",
            id="unfree",
        ),
        pytest.param(
            "{ pkgs, ... }: {\n  environment.systemPackages = "
            "[ (pkgs.hello.overrideAttrs (_: { meta.broken = true; })) ]; }",
            r"modules\[0\]:2: .*hello.* marked as broken.*nixpkgs\.config\.allowBroken = true",
            id="broken",
        ),
        pytest.param(
            "{ pkgs, ... }: {\n  environment.systemPackages = [ pkgs.valgrnd ];\n}",
            r"modules\[0\]:2:\d+: attribute 'valgrnd' missing",
            id="no such package",
        ),
        pytest.param(
            '{ pkgs, ... }: {\n  networking.hostName = builtins.readFile (pkgs.writeText "x" "y");\n}',
            r"modules\[0\]:2:\d+: cannot build .*x\.drv.* during evaluation .*spec\.configuration\.source\.archive",
            id="import from derivation",
        ),
        pytest.param(
            '{\n  imports = [ (builtins.fetchTarball "https://example.org/x.tar.gz") ];\n}',
            r"modules\[0\]:2(:\d+)?: .*https://example\.org/x\.tar\.gz.*spec\.configuration\.source\.archive",
            id="fetchTarball",
        ),
        pytest.param(
            "{\n  imports = [ ./other.nix ];\n}", r"modules\[0\]:2(:\d+)?: .*other\.nix.*", id="a missing file"
        ),
    ],
)
async def test_a_mistake_is_told_in_one_message(nix: SandboxedNix, nixpkgs: Source, module: str, message: str) -> None:
    with pytest.raises(Blocked) as failed:
        await evaluated(nix, nixpkgs, module)
    assert re.match(message, failed.value.message), failed.value.message
    assert len(failed.value.message) <= 400
    assert "/nix/store" not in failed.value.message
