"""What asyncssh, the operating system and the account's shell say → what the caller does next. The one table."""

from __future__ import annotations

import errno
import re

import asyncssh

from nixops_operator.adapters.ssh.facts import StoreRoom, first_useful_line, last_useful_line
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, OperatorError, Retry

# asyncssh's text when two lists of algorithms have nothing in common (connection.py, `_choose_alg`).
_NO_SHARED_HOST_KEY_TYPE = "server host key"

# util-linux and shadow: "This account is currently not available."; NixOS: users without a shell get nologin.
_IS_NO_SHELL = re.compile(r"account is (currently )?not available|nologin", re.IGNORECASE)
# strerror(3) of ENOSPC and EROFS, as Nix shows them.
_DISK_FULL = "No space left on device"
_READ_ONLY = "Read-only file system"
# SQLite's SQLITE_CANTOPEN, of the journal that it makes beside Nix' data base.
_NO_FILE = "unable to open database file"
# Its SQLITE_FULL.
_DATABASE_FULL = "database or disk is full"

# What is free where next to nothing can be written any more, whatever was said of it: of a journal that cannot be made
# larger SQLite says "disk I/O error", as of a disk that is broken.
_NOTHING_FREE = 1 << 20  # bytes
_NO_INODE_FREE = 16
_COLLECT = "nix-collect-garbage --delete-older-than 30d"

# How bash and dash say which line of the agent failed.
_IN_THE_AGENT = re.compile(r"^/var/lib/nixops/\S{1,200}: (?:line )?[0-9]{1,5}: ")

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
                f"{where} refused the client key for {user}; check authorized_keys and sshd's PermitRootLogin on the "
                "host (NixOS: users.users.root.openssh.authorizedKeys.keys), or ssh.privateKeySecretRef",
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


def no_shell(where: str, user: str, exit_status: int | None, stdout: str, stderr: str) -> Blocked:
    """The login succeeded, and then the account's shell did not run what it was given. `exit_status` None: it was cut
    while it talked."""
    said = first_useful_line(stdout) or first_useful_line(stderr)
    if said and not _IS_NO_SHELL.search(said):
        what = (
            f"the login shell of {user} on {where} does not run commands, it says `{said}`. Give it a plain shell "
            "(users.users.<name>.shell), without a forced command (command=… in authorized_keys, ForceCommand of sshd)"
        )
    else:
        ended = f"; it ended with {exit_status}" if exit_status else ""
        what = (
            f"the account {user} on {where} has no shell that runs commands (as /sbin/nologin and /bin/false){ended}. "
            "Give it one (users.users.<name>.shell)"
        )
    return Blocked(Reason.AUTHENTICATION_FAILED, what)


def not_root(where: str, user: str, said: str) -> Blocked:
    """The account is called root, and is not."""
    return Blocked(
        Reason.AUTHENTICATION_FAILED,
        f"the account {user} on {where} is not the superuser ({said}); to activate a system needs uid 0",
    )


def boot_entry_failed(where: str, said: str) -> Retry:
    """Profile or boot loader refused: `said` is the end of what they wrote. What runs goes on running."""
    why = last_useful_line(said) or "without a word"
    is_full = _DISK_FULL.lower() in said.lower()
    advice = "make room in /boot, with a lower activation.keepGenerations" if is_full else "look at boot.loader there"
    message = f"{where} cannot make the system its boot entry, and would boot the one before ({why}); {advice}"
    return Retry(Reason.BOOT_ENTRY_FAILED, message)


def tool_failed(where: str, doing: str, said: str, exit_status: int) -> str:
    """In words for people; `said`: what the agent, or a tool that it called, wrote to stderr."""
    why = _IN_THE_AGENT.sub("", last_useful_line(said)) or f"exit {exit_status}"
    return "; ".join(filter(None, (f"{where}: {doing}: {why}", _about_its_disk(where, said))))


def _about_its_disk(where: str, words: str) -> str:
    """What to do where a file system is why it failed; else empty."""
    if _DISK_FULL in words:
        return f"the disk of {where} is full: make room ({_COLLECT}), or enlarge it"
    if _READ_ONLY in words:
        return f"a file system of {where} is mounted read-only; look at its kernel's log"
    if _NO_FILE in words:
        return (
            f"nothing can be written in /nix/var/nix/db of {where}: no inode is left (`df -i /nix`; {_COLLECT} makes "
            "room), or it is read-only"
        )
    return ""


def _about_its_store(where: str, words: str, room: StoreRoom) -> str:
    """What is used up in its /nix/store; empty if nothing is. ENOSPC is both said of bytes and of inodes."""
    has_inodes = room.inodes > 0
    is_used_up = room.free < _NOTHING_FREE or (has_inodes and room.free_inodes < _NO_INODE_FREE)
    if not is_used_up and _DISK_FULL not in words and _DATABASE_FULL not in words:
        return ""
    if has_inodes and room.free_inodes * room.size < room.free * room.inodes:  # a smaller part of them is free
        return (
            f"no inode is left for it in /nix/store of {where} ({room.free_inodes} are free): make room ({_COLLECT}), "
            "or give it a file system with more"
        )
    free = f"{room.free // (1 << 20)} MiB free in /nix/store"
    return f"the disk of {where} is full ({free}): make room ({_COLLECT}), or enlarge it"


def copy_failed(where: str, error: Retry, said: str, room: StoreRoom | None) -> Retry:
    """`error` is what `nix copy` saw of it: of a daemon that could not even start, only the end of the stream. `said`
    is what the daemon wrote to stderr at last; empty if nothing. `room`: None where it could not be asked for."""
    words = f"{error.message} {said}"
    advice = _about_its_store(where, words, room) if room is not None else ""
    advice = advice or _about_its_disk(where, words)
    parts = [error.message, f"the Nix daemon of {where} says: {said}" if said else "", advice]
    return Retry(error.reason, "; ".join(filter(None, parts)), error.after) if said or advice else error
