"""What the cache holds: `pkgs.prebuilt.everything` of a nixpkgs tree, built, signed and packed by Nix itself.

Made once for a tree and kept in the cache of this user. `python -m nixops_lab.binary_cache.contents NIXPKGS` makes it,
with progress on stderr, and prints the path.
"""

import fcntl
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from nixops_lab.binary_cache.signing_key import SECRET_KEY
from nixops_lab.debian import tree_digest
from nixops_lab.paths import cache_folder
from nixops_lab.report import LabError, say

# $1 a folder to work in, $2 nixpkgs, $3 where the cache goes. In a mount namespace of its own.
_SCRIPT = r"""
export NIX_REMOTE=local NIX_CONF_DIR=$1 HOME=$1 NIX_CONFIG='build-users-group =
sandbox = false
substituters =
experimental-features = nix-command
max-jobs = 4
fsync-metadata = false'
mount --bind "$1/nix" /nix
touch /nix/.lab-cache-maker
paths=$(nix-build --no-out-link --expr "(import $2 { system = \"x86_64-linux\"; }).prebuilt.everything")
umask 077
cat >"$1/key"
umask 022
nix copy --to "file://$3?secret-key=$1/key&compression=xz" $paths
"""


def make(nixpkgs: Path) -> Path:
    """The folder of the cache, as a web server may show it. Needs root. Raises LabError."""
    cache = cache_folder()
    cache.mkdir(parents=True, exist_ok=True)
    recipe = hashlib.sha256("\0".join((tree_digest(nixpkgs / "pkgs"), _SCRIPT, SECRET_KEY)).encode()).hexdigest()[:16]
    place = cache / f"binary-cache-{recipe}"
    with (cache / "binary-cache.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.exists():
            say("building the packages of the lab's binary cache")
            work = place.with_name(f"{place.name}.partial")
            shutil.rmtree(work, ignore_errors=True)
            try:
                _fill(work, nixpkgs)
                (work / "cache").rename(place)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return place


def _fill(work: Path, nixpkgs: Path) -> None:
    for name in ("nix", "cache"):
        (work / name).mkdir(parents=True)
    Path("/nix").mkdir(exist_ok=True)  # a mount point; Debian's Nix does not bring it
    argv = ["unshare", "--mount", "--propagation=private", "--", "sh", "-euc", _SCRIPT, "sh"]
    done = subprocess.run(
        [*argv, str(work), str(nixpkgs), str(work / "cache")],
        input=SECRET_KEY,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise LabError(f"the binary cache could not be made:\n{done.stderr[-2000:]}")


if __name__ == "__main__":
    print(make(Path(sys.argv[1]).resolve()))
