"""What the tests declare: small configurations whose page tells which one runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from nixops_lab.paths import CHECKOUT
from nixops_lab.testing import Lab

EXAMPLE = CHECKOUT / "examples" / "valgrind-docs"
REGION = "us-west-2"
QUICK = {"timeout": "60s", "confirmTimeout": "10s"}
"""Of `activation`: an activation that goes wrong is over soon."""

HARDWARE = """{
  fileSystems."/" = { device = "/dev/disk/by-label/nixos"; fsType = "ext4"; };
  boot.loader.grub.device = "/dev/sda";
  services.openssh.enable = true;
  system.stateVersion = "25.11";
}"""


def page(title: str, more: str = "") -> str:
    """A module that serves a page with this title."""
    return f"""{{ pkgs, lib, ... }}: {{
  services.httpd.enable = true;
  services.httpd.adminAddr = "webmaster@example.org";
  services.httpd.virtualHosts.localhost.documentRoot =
    pkgs.writeTextDir "index.html" "<html><head><title>{title}</title></head></html>";
  networking.firewall.allowedTCPPorts = [ 80 ];
  {more}
}}"""


def rule(port: int) -> dict[str, Any]:
    return {"protocol": "tcp", "fromPort": port, "toPort": port, "cidrs": ["0.0.0.0/0"]}


def aws(profile: str | None = "nixops-example") -> dict[str, Any]:
    """Credentials in the Secret `aws`."""
    credentials: dict[str, Any] = {"secretRef": {"name": "aws"}}
    return {"region": REGION, "credentials": credentials | ({"profile": profile} if profile else {})}


def on_ec2(module: str, name: str = "site", **machine: Any) -> dict[str, Any]:
    """A deployment of one machine `web` with a key pair and a group of its own; `machine`: more fields of it, where
    those of `ec2` go into its target."""
    ec2 = {"instanceType": "t2.micro", "keyPair": "key", "securityGroups": ["web"], **machine.pop("ec2", {})}
    spec = {
        "aws": aws(),
        "keyPairs": [{"name": "key"}],
        "securityGroups": [{"name": "web", "description": "Site and SSH", "ingress": [rule(22), rule(80)]}],
        "machines": [
            {"name": "web", "target": {"ec2": ec2}, "configuration": {"modules": [{"inline": module}]}, **machine}
        ],
    }
    return {"apiVersion": "nixops.dev/v1alpha1", "kind": "NixDeployment", "metadata": {"name": name}, "spec": spec}


def on_host(lab: Lab, module: str, name: str = "host", **more: Any) -> dict[str, Any]:
    """A NixMachine that is the given host; `more`: other fields of its spec, in place of these."""
    spec = {
        "target": {"host": {"address": lab.env["LAB_HOST_ADDRESS"]}},
        "ssh": {"privateKeySecretRef": {"name": "existing-host-ssh"}, "hostKeys": [host_key(lab)]},
        "configuration": {"modules": [{"inline": module}, {"inline": HARDWARE}]},
        **more,
    }
    return {"apiVersion": "nixops.dev/v1alpha1", "kind": "NixMachine", "metadata": {"name": name}, "spec": spec}


def host_key(lab: Lab) -> str:
    """The given host's public key, without its comment."""
    return " ".join(lab.env["LAB_HOST_KEY"].split()[:2])


def example(folder: Path, lab: Lab) -> Path:
    """A copy of the example whose given host is the lab's; returns its folder."""
    copy = folder / "valgrind-docs"
    shutil.copytree(EXAMPLE, copy)
    (copy / "targets/existing-host/host.env").write_text(
        f"ADDRESS={lab.env['LAB_HOST_ADDRESS']}\nHOST_KEY={host_key(lab)}\n"
    )
    return copy


def edit_page(example_folder: Path, title: str, more: str = "") -> None:
    """The edit of the example's module: another page instead of valgrind's manual. `more`: of the module."""
    module = example_folder / "machine/configuration.nix"
    lines = module.read_text().splitlines()
    (place,) = [number for number, line in enumerate(lines) if "documentRoot" in line]
    other = f'pkgs.writeTextDir "index.html" "<html><head><title>{title}</title></head></html>"'
    lines[place] = f"  services.httpd.virtualHosts.localhost.documentRoot = {other}; {more}".rstrip()
    module.write_text("\n".join(lines) + "\n")
