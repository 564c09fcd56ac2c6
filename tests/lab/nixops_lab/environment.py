"""The variables by which a person, a test or a demo finds the lab."""

import os
import shlex
from collections.abc import Mapping

from nixops_lab.binary_cache.server import URL as CACHE_URL
from nixops_lab.binary_cache.signing_key import PUBLIC_KEY as CACHE_KEY
from nixops_lab.identities import Identities
from nixops_lab.paths import LabPaths
from nixops_lab.state import State

REGION = "us-west-2"
HOST_NAME = "given-host"
HOST_ADDRESS = "192.0.2.10"
HOST_PORT = 22

# These would win over, or get in the way of, what the lab sets.
FOREIGN = (
    "AWS_PROFILE",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "http_proxy",
    "https_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
)


def variables(paths: LabPaths, state: State, identities: Identities) -> dict[str, str]:
    """Name → value, without PATH. The same values hold inside the lab's network and outside."""
    return {
        "KUBECONFIG": str(paths.kubeconfig),
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{state.ports['ec2']}",
        "AWS_ACCESS_KEY_ID": identities.person.id,
        "AWS_SECRET_ACCESS_KEY": identities.person.secret,
        "AWS_DEFAULT_REGION": REGION,
        "LAB_DIR": str(paths.folder),
        "LAB_CONTROL_URL": f"http://127.0.0.1:{state.ports['control']}",
        "LAB_OPERATOR_URL": f"http://127.0.0.1:{state.ports['operator']}",
        "LAB_HOST_ADDRESS": HOST_ADDRESS,
        "LAB_HOST_PORT": str(HOST_PORT),
        "LAB_HOST_KEY": identities.host_public_key,
        "LAB_SSH_KEY": str(paths.client_key),
        "LAB_NIXPKGS": str(paths.nixpkgs),
        "LAB_CACHE_URL": CACHE_URL,
        "LAB_CACHE_KEY": CACHE_KEY,
        "LAB_OPERATOR_AWS_ACCESS_KEY_ID": identities.operator.id,
        "LAB_OPERATOR_AWS_SECRET_ACCESS_KEY": identities.operator.secret,
        "LAB_NEIGHBOUR_AWS_ACCESS_KEY_ID": identities.neighbour.id,
        "LAB_NEIGHBOUR_AWS_SECRET_ACCESS_KEY": identities.neighbour.secret,
    }


def export_lines(paths: LabPaths, found: Mapping[str, str]) -> str:
    """For `eval "$(lab env)"` in any POSIX shell. PATH grows at the front and keeps what the shell has."""
    lines = [f"export {name}={shlex.quote(value)}" for name, value in found.items()]
    return "\n".join([*lines, f'export PATH={shlex.quote(str(paths.programs))}:"$PATH"']) + "\n"


def inside(paths: LabPaths, found: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of a command that `lab run` starts: the caller's, with the lab's values on top."""
    kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
    path = os.environ.get("PATH", os.defpath)
    return {**kept, **found, "PATH": f"{paths.programs}:{path}"}
