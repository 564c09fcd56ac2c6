"""Stands where Nix looks for `ssh`: joins Nix' standard streams to the Unix socket named by NIXOPS_DAEMON_SOCKET.

Behind the socket is a `nix-daemon --stdio` at the far end of an SSH connection that is open already. So there is no
key file, no known_hosts and no handshake here, and the arguments say nothing new. Newer versions of Nix wait for the
word that OpenSSH's LocalCommand prints when a connection stands (Nix, src/libstore/ssh.cc).
"""

import os
import socket
import sys
import threading

_CHUNK = 1 << 18


def main() -> int:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ["NIXOPS_DAEMON_SOCKET"])
    if any("LocalCommand=echo started" in argument for argument in sys.argv):
        os.write(1, b"started\n")
    threading.Thread(target=_send, args=(connection,), daemon=True).start()
    while chunk := connection.recv(_CHUNK):
        rest = memoryview(chunk)
        while rest:
            rest = rest[os.write(1, rest) :]
    return 0


def _send(connection: socket.socket) -> None:
    while chunk := os.read(0, _CHUNK):
        connection.sendall(chunk)
    connection.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    sys.exit(main())
