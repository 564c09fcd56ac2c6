"""Stands in for ssh(1): joins stdin and stdout to the Unix socket in $NIX_DAEMON_SOCKET."""

import os
import socket
import threading

connection = socket.socket(socket.AF_UNIX)
connection.connect(os.environ["NIX_DAEMON_SOCKET"])


def upward() -> None:
    while chunk := os.read(0, 1 << 16):
        connection.sendall(chunk)
    connection.shutdown(socket.SHUT_WR)


threading.Thread(target=upward, daemon=True).start()
while chunk := connection.recv(1 << 16):
    view = memoryview(chunk)
    while view:
        view = view[os.write(1, view) :]
