"""Stands where Nix looks for `ssh`: joins Nix' standard streams to the Unix socket named by NIXOPS_DAEMON_SOCKET.

Behind the socket is a `nix-daemon --stdio` at the far end of an SSH connection that is open already. So there is no
key file, no known_hosts and no handshake here, and the arguments say nothing new, but for two of newer versions of Nix
(src/libstore/ssh.cc): they ask (`-O check`) whether a connection stands that they can share, and if none does, wait for
the word that OpenSSH's LocalCommand prints when a new one does.

Nix tells of whole paths only. A large one over a slow line would look like a copy that hangs: so once a second, if any
have moved, stderr says how many bytes did, as `@moved 123456` (see progress.py).
"""

import os
import socket
import sys
import threading
import time

_CHUNK = 1 << 18
_TELL_EVERY = 1.0  # seconds


class Moved:
    """Counts bytes in both directions."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = 0
        self._told_at = float("-inf")

    def add(self, count: int) -> None:
        with self._lock:
            self._total += count
            if time.monotonic() - self._told_at >= _TELL_EVERY:
                self._told_at = time.monotonic()
                os.write(2, b"@moved %d\n" % self._total)


def main() -> int:
    if "-O" in sys.argv:
        return 255  # as OpenSSH says that no connection is there to be shared
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ["NIXOPS_DAEMON_SOCKET"])
    if any("LocalCommand=echo started" in argument for argument in sys.argv):
        os.write(1, b"started\n")
    moved = Moved()
    threading.Thread(target=_send, args=(connection, moved), daemon=True).start()
    while chunk := connection.recv(_CHUNK):
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(1, rest) :]
        moved.add(len(chunk))
    return 0


def _send(connection: socket.socket, moved: Moved) -> None:
    while chunk := os.read(0, _CHUNK):
        rest = memoryview(chunk)
        while rest:
            sent = connection.send(rest)
            rest = rest[sent:]
            moved.add(sent)
    connection.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    sys.exit(main())
