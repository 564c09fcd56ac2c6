"""The agent: the script that does on a host what `ports/host.py` promises, and how its arguments travel."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources

# Makes /var/lib/nixops/agent-<hash> out of stdin if it is not there whole; a cut upload never gets the name.
_PLACE = """\
set -eu; umask 077; f=/var/lib/nixops/agent-{digest}; \
if printf "%s  %s\\n" {digest} "$f" | sha256sum --check --status 2>/dev/null; then cat >/dev/null; exit 0; fi; \
mkdir -p -m 700 /var/lib/nixops; t="$f.$$"; trap "rm -f \\"$t\\"" EXIT; cat >"$t"; \
printf "%s  %s\\n" {digest} "$t" | sha256sum --check --status; sync "$t"; mv -T "$t" "$f"
"""


@dataclass(frozen=True)
class Agent:
    """The script and the commands that use it."""

    script: bytes

    @property
    def digest(self) -> str:
        """SHA-256 of the script, in hex: two versions of the operator do not share a file."""
        return hashlib.sha256(self.script).hexdigest()

    @property
    def placing_command(self) -> str:
        """Shell command that takes the script on stdin and leaves it on the host. Repeating: safe."""
        return f"exec sh -c '{_PLACE.format(digest=self.digest).strip()}'"

    def command(self, *words: str) -> str:
        """Shell command for one of the agent's commands. `words` are its name and an activation's id: nothing that a
        shell would look at."""
        return " ".join(("exec sh", f"/var/lib/nixops/agent-{self.digest}", *words))


def load_agent() -> Agent:
    """The script of this package."""
    return Agent(resources.files(__package__).joinpath("agent.sh").read_bytes())


def frame(*arguments: str) -> bytes:
    """Arguments as the agent takes them from stdin: length in bytes, newline, bytes, newline."""
    framed = bytearray()
    for argument in arguments:
        encoded = argument.encode()
        framed += b"%d\n%s\n" % (len(encoded), encoded)
    return bytes(framed)
