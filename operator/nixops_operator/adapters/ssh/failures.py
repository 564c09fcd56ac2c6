"""What asyncssh and the operating system raise while connecting → what the caller does next. The one table."""

from __future__ import annotations

import errno

import asyncssh

from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, OperatorError, Retry

# asyncssh's text when two lists of algorithms have nothing in common (connection.py, `_choose_alg`).
_NO_SHARED_HOST_KEY_TYPE = "server host key"

_UNREACHABLE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.ETIMEDOUT}


def connecting_failed(error: Exception, where: str, user: str) -> OperatorError:
    """`where` is `<address>`, or `<address> port <port>` where that is not 22."""
    match error:
        case TimeoutError():
            return Retry(Reason.CONNECT_TIMEOUT, f"{where} did not answer SSH in time")
        case ConnectionRefusedError():
            return Retry(Reason.CONNECTION_REFUSED, f"{where} refused the connection: nothing listens there")
        case ConnectionError():
            return Retry(Reason.CONNECTION_REFUSED, f"{where} cut the connection during the handshake")
        case OSError(errno=number) if number in _UNREACHABLE:
            return Retry(Reason.CONNECT_TIMEOUT, f"{where} cannot be reached: no route, or no answer")
        case OSError():
            return Retry(Reason.CONNECT_TIMEOUT, f"{where} cannot be connected to: {error.strerror or 'network error'}")
        case asyncssh.PermissionDenied():
            return Blocked(
                Reason.AUTHENTICATION_FAILED,
                f"{where} refused the client key for {user}; check authorized_keys on the host, or ssh.user and "
                "ssh.privateKeySecretRef",
            )
        case asyncssh.KeyExchangeFailed() if _NO_SHARED_HOST_KEY_TYPE in error.reason:
            return Blocked(
                Reason.HOST_KEY_MISMATCH,
                f"{where} shows no host key of a type that is accepted; no login was tried. Give it an ed25519 key "
                "and pin that",
            )
        case asyncssh.KeyExchangeFailed():
            return Retry(
                Reason.CONNECTION_REFUSED,
                f"{where} offers no key exchange or cipher that is accepted (curve25519-sha256, AES-GCM)",
            )
        case asyncssh.ConnectionLost():
            return Retry(Reason.CONNECT_TIMEOUT, f"{where} went silent or closed the connection before the login ended")
        case asyncssh.Error():
            return Retry(Reason.CONNECTION_REFUSED, f"{where} ended the handshake: no usable SSH server answers there")
        case _:
            raise error


def host_key_mismatch(where: str, shown: str, pinned: list[str]) -> Blocked:
    """`shown` and `pinned` are fingerprints, `SHA256:…`."""
    return Blocked(
        Reason.HOST_KEY_MISMATCH,
        f"{where} shows the host key {shown}; pinned: {', '.join(pinned)}. No login was tried. If the host was made "
        "anew, give its new key; if not, somebody else answers at this address",
    )
