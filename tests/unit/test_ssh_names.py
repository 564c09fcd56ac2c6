"""Names of hosts, asked of the system's resolver."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from nixops_operator.adapters.ssh.hosts import AsyncsshHosts


async def test_a_hundred_names_that_hang_hold_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    end = threading.Event()

    def getaddrinfo(name: str, *_args: object, **_named: object) -> list[tuple[object, ...]]:
        if name.startswith("silent-"):
            end.wait()
            raise OSError
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.7", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    hosts = AsyncsshHosts()
    silent = [asyncio.ensure_future(hosts.resolve(f"silent-{number}.example.org")) for number in range(100)]
    await asyncio.sleep(0)  # they ask first
    try:
        assert await hosts.resolve("web.example.org") == ("192.0.2.7",)
    finally:
        end.set()
        await asyncio.gather(*silent, return_exceptions=True)
