"""The names of jobs: `<kind>:<what it produces>`. Whoever starts a job and whoever looks for it ask here.

fetch:<hash of tree and URL>          the same for all who need that tree from there
evaluate:<hash of the input>          the same for all who declare the same
build:<.drv>                          the same for all whose system it is
copy:<host>:<toplevel>                one system on one machine
copy:<host>:<.drv>                    one system's derivations on one machine
realise:<host>:<.drv>                 one system, built by one machine
host:<host>:<activation id>:<action>  one step of one activation
host:<host>:keys:<hash>               brings the keys that differ, by what they are to be
dry-activate:<host>:<toplevel>:<current>  what the one would do to a machine that runs the other
host:<host>:adopt:<toplevel>          makes what runs the profile and boot entry
host:<host>:detach:<volume>           detaches a volume that nothing on the machine uses
host:<host>:grow:<volume>:<GiB>       grows the root file system into its disk
host:<host>:stop-build                ends a build that the machine does for nobody any more
host:<host>:own, host:<host>:disown   writes on a given host whose it is, and takes that off
"""

from __future__ import annotations

import hashlib

FETCH = "fetch"
EVALUATE = "evaluate"
BUILD = "build"
COPY = "copy"
REALISE = "realise"
DRY_ACTIVATE = "dry-activate"
HOST = "host"

KINDS = (FETCH, EVALUATE, BUILD, COPY, REALISE, DRY_ACTIVATE, HOST)


def fetch(origin: str) -> str:
    """`origin`: of an archive or a folder; a URL may hold a token, and names stand in logs."""
    return f"{FETCH}:{hashlib.sha256(origin.encode()).hexdigest()}"


def evaluate(input_hash: str) -> str:
    return f"{EVALUATE}:{input_hash}"


def build(drv_path: str) -> str:
    return f"{BUILD}:{drv_path}"


def copy(host_id: str, store_path: str) -> str:
    """`store_path`: of a system, or of a system's derivation."""
    return f"{COPY}:{host_id}:{store_path}"


def realise(host_id: str, drv_path: str) -> str:
    return f"{REALISE}:{host_id}:{drv_path}"


def dry_activate(host_id: str, toplevel: str, current: str) -> str:
    return f"{DRY_ACTIVATE}:{host_id}:{toplevel}:{current}"


def stop_build(host_id: str) -> str:
    return f"{HOST}:{host_id}:stop-build"


def on_host(host_id: str, activation_id: str, action: str) -> str:
    """`action`: activate, hold, confirm, commit, restart or rollback."""
    return f"{HOST}:{host_id}:{activation_id}:{action}"


def adopt(host_id: str, toplevel: str) -> str:
    return f"{HOST}:{host_id}:adopt:{toplevel}"


def keys(host_id: str, what: str) -> str:
    """`what`: a hash of what is to be brought."""
    return f"{HOST}:{host_id}:keys:{what}"


def generations(host_id: str, which: str) -> str:
    """`which`: the first and the last of those that are to go."""
    return f"{HOST}:{host_id}:generations:{which}"


def host_key(host_id: str) -> str:
    return f"{HOST}:{host_id}:host-key"


def grow(host_id: str, volume_id: str, size_gib: int) -> str:
    return f"{HOST}:{host_id}:grow:{volume_id}:{size_gib}"


def detach(host_id: str, volume_id: str) -> str:
    return f"{HOST}:{host_id}:detach:{volume_id}"


def own(host_id: str) -> str:
    return f"{HOST}:{host_id}:own"


def disown(host_id: str) -> str:
    return f"{HOST}:{host_id}:disown"


def kind_of(name: str) -> str:
    """What stands before the first colon."""
    return name.partition(":")[0]
