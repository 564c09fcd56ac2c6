"""Connections to machines: one TCP connection, one handshake, the pinned key or nothing."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from ipaddress import ip_address

import asyncssh

from nixops_operator.adapters.ssh.agent import load_agent
from nixops_operator.adapters.ssh.failures import connecting_failed, host_key_mismatch
from nixops_operator.adapters.ssh.host import AsyncsshHost
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, OperatorError, Retry
from nixops_operator.facts.host import HostTarget
from nixops_operator.ssh_keys import parse_private_key

CONNECT_TIMEOUT = 10  # s, for TCP, and again for the whole handshake
LOGIN_TIMEOUT = 20  # s
KEEPALIVE_INTERVAL = 15  # s; three unanswered ones end the connection
KEEPALIVE_COUNT = 3
RESOLVER_THREADS = 128
"""Own ones: a name server that hangs holds up no call of the API server. Many: the name server of one tenant's hundred
machines may be silent, and the system's resolver then holds a thread for each of them, for up to minutes
(resolv.conf(5): every server twice, 5 s each, for every entry of `search`), at each try."""
SIMULTANEOUS_HANDSHAKES = 32  # about 2 ms of the loop's CPU each; sshd drops from 10 unauthenticated ones on

# OpenSSH before 6.5 lacks these; every NixOS release since 14.04 has them. Terrapin (CVE-2023-48795) concerns neither
# AES-GCM nor its tags.
KEY_EXCHANGES = ("curve25519-sha256", "curve25519-sha256@libssh.org")
CIPHERS = ("aes256-gcm@openssh.com", "aes128-gcm@openssh.com")
SHA1_SIGNATURE = b"ssh-rsa"
HOST_KEY_ALGORITHMS = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-512",
    "rsa-sha2-256",
)


class _PinnedKeysOnly(asyncssh.SSHClient):
    """Accepts no key beyond the pinned ones, and remembers what was shown. asyncssh asks before it authenticates."""

    def __init__(self) -> None:
        self.refused: asyncssh.SSHKey | None = None

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:  # noqa: ARG002
        self.refused = key
        return False


class AsyncsshHosts:
    """`ports.host.Hosts` over asyncssh. Reads no configuration, agent, default key or known_hosts of its user."""

    def __init__(self) -> None:
        self._agent = load_agent()
        self._handshakes = asyncio.Semaphore(SIMULTANEOUS_HANDSHAKES)
        self._resolvers = ThreadPoolExecutor(RESOLVER_THREADS, thread_name_prefix="resolve")

    async def resolve(self, address: str) -> tuple[str, ...]:
        """See `ports.host.Hosts.resolve`."""
        loop = asyncio.get_running_loop()
        try:
            answers = await loop.run_in_executor(self._resolvers, _addresses, address)
        except (OSError, UnicodeError) as error:
            raise Retry(Reason.CONNECT_TIMEOUT, f"the name {address} does not resolve to an address") from error
        if not answers:
            raise Retry(Reason.CONNECT_TIMEOUT, f"the name {address} does not resolve to an address")
        return tuple(filter(_has_route, answers)) or answers

    async def connect(self, target: HostTarget) -> AsyncsshHost:
        """See `ports.host.Hosts.connect`."""
        if target.user != "root":
            raise Blocked(
                Reason.INVALID_SPEC, f"ssh.user: only root can be used for now, not {target.user}; remove the field"
            )
        client_keys = _client_keys(target)
        pinned = _pinned_keys(target)
        client = _PinnedKeysOnly()
        dialled = await _dial(target)
        with ExitStack() as stack:
            stack.callback(dialled.close)
            async with self._handshakes:
                try:
                    connection = await asyncssh.connect(
                        target.address,
                        target.port,
                        sock=dialled,
                        username=target.user,
                        client_factory=lambda: client,
                        config=None,
                        agent_path=None,
                        client_keys=client_keys,
                        known_hosts=(pinned, [], [], [], [], [], []),
                        x509_trusted_certs=None,
                        preferred_auth="publickey",
                        disable_trivial_auth=True,
                        server_host_key_algs=_host_key_algorithms(pinned),
                        kex_algs=KEY_EXCHANGES,
                        encryption_algs=CIPHERS,
                        compression_algs=None,
                        agent_forwarding=False,
                        gss_host=None,
                        connect_timeout=CONNECT_TIMEOUT,
                        login_timeout=LOGIN_TIMEOUT,
                        keepalive_interval=KEEPALIVE_INTERVAL,
                        keepalive_count_max=KEEPALIVE_COUNT,
                    )
                except (OSError, asyncssh.Error) as error:
                    raise _told(error, client, pinned, target) from error
            stack.pop_all()
        return AsyncsshHost(connection, target, self._agent)


async def _dial(target: HostTarget) -> socket.socket:
    """A TCP connection. Not one of the handshakes: silent addresses, which cost nothing, would hold up all others."""
    family = socket.AF_INET if ip_address(target.address).version == 4 else socket.AF_INET6
    with ExitStack() as stack:
        dialled = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        dialled.setblocking(False)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await asyncio.get_running_loop().sock_connect(dialled, (target.address, target.port))
        except OSError as error:
            raise connecting_failed(error, _where(target), target.user) from error
        stack.pop_all()
    return dialled


def _told(
    error: Exception, client: _PinnedKeysOnly, pinned: list[asyncssh.SSHKey], target: HostTarget
) -> OperatorError:
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        shown = "of an unknown form" if client.refused is None else _described(client.refused)
        return host_key_mismatch(_where(target), shown, [_described(key) for key in pinned])
    return connecting_failed(error, _where(target), target.user)


def _addresses(name: str) -> tuple[str, ...]:
    found = {str(answer[4][0]) for answer in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
    return tuple(sorted(found, key=lambda each: (ip_address(each).version, int(ip_address(each)))))


def _has_route(address: str) -> bool:
    """To connect a datagram socket asks the kernel for a route, and sends nothing."""
    family = socket.AF_INET if ip_address(address).version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))
    except OSError:
        return False
    return True


def _where(target: HostTarget) -> str:
    return target.address if target.port == asyncssh.DEFAULT_PORT else f"{target.address} port {target.port}"


def _client_keys(target: HostTarget) -> list[asyncssh.SSHKey]:
    """`parse_private_key` has looked at the numbers; asyncssh would test large ones for primality, for minutes."""
    where = f"the SSH client key for {target.address}"
    keys = [parse_private_key(text.encode(), where) for text in target.client_keys]
    return [asyncssh.import_private_key(key.text, unsafe_skip_rsa_key_validation=True) for key in keys]


def _pinned_keys(target: HostTarget) -> list[asyncssh.SSHKey]:
    try:
        keys = [asyncssh.import_public_key(key) for key in target.host_keys]
    except asyncssh.KeyImportError as error:
        raise Blocked(
            Reason.HOST_KEY_UNKNOWN, f"a pinned host key of {target.address} is not of the form `<type> <base64>`"
        ) from error
    if not keys:
        raise Blocked(Reason.HOST_KEY_UNKNOWN, f"no host key of {target.address} is pinned")
    return keys


def _host_key_algorithms(pinned: list[asyncssh.SSHKey]) -> list[str]:
    """What the pinned keys can sign comes first, so a host with several keys shows one of them (nixops#339; the
    client's order decides, RFC 4253, 7.1). The others follow: a host that has none of them shows what it has instead.
    """
    preferred = [name.decode() for key in pinned for name in key.sig_algorithms if name != SHA1_SIGNATURE]
    return list(dict.fromkeys([*preferred, *HOST_KEY_ALGORITHMS]))


def _described(key: asyncssh.SSHKey) -> str:
    return f"{key.get_algorithm()} {key.get_fingerprint()}"
