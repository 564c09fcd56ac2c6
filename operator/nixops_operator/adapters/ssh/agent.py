"""The agent: the script that does on a host what `ports/host.py` promises, and how words travel to it and back.

sshd gives every command to the account's login shell, and that shell may say things of its own: a line of a .bashrc, a
greeting, an echo. So each call carries a random number and marks its output; what comes outside the marks is not the
agent's. The text of a mark is put together on the host: an echo of the command does not contain one. Pure, but for the
random number.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from importlib import resources

NOISE_BYTES = 64 << 10  # what a shell may say before the first mark; a greeting has a few hundred

# One line, and no single quote in it: bash, dash, fish and csh all hand it on as it is.
_CALL = """\
exec sh -c 'n={nonce}; b() {{ printf "\\nnixops-%s begin\\n" $n; }}; b; b >&2; ({script}); s=$?; \
printf "\\nnixops-%s end\\n" $n; exit $s'"""
_STREAM = """exec sh -c 'n={nonce}; b() {{ printf "\\nnixops-%s begin\\n" $n; }}; b; b >&2; {script}'"""

NOT_ROOT = 77  # the account is called root and is not uid 0

# Makes /var/lib/nixops/agent-<hash> out of stdin if it is not there whole; a cut upload never gets the name. Those of
# other releases, and what cut uploads left, go when nobody has connected with them for a month: an operator that has
# not ended yet may go on with its own. Activations and builds have copies.
_PLACE = """\
set -eu; umask 077; \
u=$(id -u); if [ "$u" != 0 ]; then echo "its uid is $u" >&2; exit {not_root}; fi; \
f=/var/lib/nixops/agent-{digest}; \
if printf "%s  %s\\n" {digest} "$f" | sha256sum --check --status 2>/dev/null; then \
cat >/dev/null; touch "$f"; exit 0; fi; \
mkdir -p -m 700 /var/lib/nixops; t="$f.$$"; trap "rm -f \\"$t\\"" EXIT; cat >"$t"; \
if ! printf "%s  %s\\n" {digest} "$t" | sha256sum --check --status; then \
echo "the script did not arrive whole: something that the shell starts reads its input" >&2; exit 1; fi; \
sync "$t"; mv -T "$t" "$f"; \
find /var/lib/nixops -maxdepth 1 -type f -name "agent-*" -mtime +30 -delete || true"""


@dataclass(frozen=True)
class Call:
    """One command line for sshd, and the marks of what it answers."""

    script: str
    is_stream: bool = False  # the script takes the shell's place and its output has no end mark
    nonce: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def line(self) -> str:
        """What sshd is asked to run."""
        return (_STREAM if self.is_stream else _CALL).format(nonce=self.nonce, script=self.script)

    @property
    def begin(self) -> str:
        """The mark before the answer, on stdout and on stderr, with the newlines around it."""
        return f"\nnixops-{self.nonce} begin\n"

    @property
    def end(self) -> str:
        """The mark after the answer, on stdout."""
        return f"\nnixops-{self.nonce} end\n"

    def answer(self, stdout: str) -> str | None:
        """What stands between the marks; None without both. Where the shell has joined stderr to stdout there are two
        marks at the beginning."""
        until, end, _ = stdout.rpartition(self.end)
        _, begin, inside = until.rpartition(self.begin)
        return inside if begin and end else None

    def complaints(self, stderr: str) -> str:
        """stderr from the mark on: what the shell said before is not about the call."""
        _, begin, rest = stderr.partition(self.begin)
        return rest if begin else stderr


@dataclass(frozen=True)
class Agent:
    """The script and the calls that use it."""

    script: bytes

    @property
    def digest(self) -> str:
        """SHA-256 of the script, in hex: two versions of the operator do not share a file."""
        return hashlib.sha256(self.script).hexdigest()

    def placing(self) -> Call:
        """Takes the script on stdin and leaves it on the host. Repeating: safe. Exit NOT_ROOT: see there."""
        return Call(_PLACE.format(digest=self.digest, not_root=NOT_ROOT))

    def call(self, *words: str) -> Call:
        """One of the agent's commands. `words` are its name and an activation's id: nothing that a shell would look
        at."""
        return Call(self._command(*words))

    def stream(self, *words: str) -> Call:
        """As `call`, for a command that talks on until its input ends."""
        return Call(self._command(*words), is_stream=True)

    def _command(self, *words: str) -> str:
        return " ".join(("exec sh", f"/var/lib/nixops/agent-{self.digest}", *words))


def load_agent() -> Agent:
    """The script of this package."""
    return Agent(resources.files(__package__).joinpath("agent.sh").read_bytes())


def frame(*arguments: str | bytes) -> bytes:
    """Arguments as the agent takes them from stdin: length in bytes, newline, bytes, newline."""
    framed = bytearray()
    for argument in arguments:
        encoded = argument.encode() if isinstance(argument, str) else argument
        framed += b"%d\n%s\n" % (len(encoded), encoded)
    return bytes(framed)
