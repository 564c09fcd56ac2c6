"""What goes wrong while connecting → reason, and whether looking again is of use."""

from __future__ import annotations

import errno
from dataclasses import replace

import asyncssh
import pytest

from nixops_operator.adapters.ssh.facts import StoreRoom
from nixops_operator.adapters.ssh.failures import (
    boot_entry_failed,
    connecting_failed,
    copy_failed,
    host_key_mismatch,
    tool_failed,
)
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, OperatorError, Retry


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        pytest.param(TimeoutError(), Retry, Reason.CONNECT_TIMEOUT, id="silence"),
        pytest.param(OSError(errno.EHOSTUNREACH, "no"), Retry, Reason.CONNECT_TIMEOUT, id="no route"),
        pytest.param(OSError(errno.EMFILE, "no"), Retry, Reason.CONNECT_TIMEOUT, id="no descriptor left here"),
        pytest.param(ConnectionRefusedError(), Retry, Reason.CONNECTION_REFUSED, id="refused"),
        pytest.param(ConnectionResetError(), Retry, Reason.CONNECTION_REFUSED, id="reset, as MaxStartups does"),
        pytest.param(asyncssh.ConnectionLost("x"), Retry, Reason.CONNECT_TIMEOUT, id="lost during the login"),
        pytest.param(asyncssh.ProtocolError("x"), Retry, Reason.CONNECTION_REFUSED, id="not an SSH server"),
        pytest.param(asyncssh.PermissionDenied("x"), Blocked, Reason.AUTHENTICATION_FAILED, id="key refused"),
        pytest.param(
            asyncssh.KeyExchangeFailed("No matching server host key algorithm found, sent …"),
            Blocked,
            Reason.HOST_KEY_MISMATCH,
            id="another type of host key",
        ),
        pytest.param(
            asyncssh.KeyExchangeFailed("No matching encryption algorithm found, sent …"),
            Retry,
            Reason.CONNECTION_REFUSED,
            id="only old ciphers",
        ),
    ],
)
def test_a_failure_becomes_what_to_do_next(error: Exception, kind: type[OperatorError], reason: Reason) -> None:
    answer = connecting_failed(error, "192.0.2.10", "root")
    assert (type(answer), answer.reason) == (kind, reason)
    assert answer.message.startswith("192.0.2.10 ")


def test_a_foreign_error_is_not_hidden() -> None:
    with pytest.raises(KeyError):
        connecting_failed(KeyError("x"), "192.0.2.10", "root")


def test_a_refused_key_names_the_remedy() -> None:
    message = connecting_failed(asyncssh.PermissionDenied("x"), "192.0.2.10", "root").message
    assert message == (
        "192.0.2.10 refused the client key for root; check authorized_keys and sshd's PermitRootLogin on "
        "the host (NixOS: users.users.root.openssh.authorizedKeys.keys), or ssh.privateKeySecretRef"
    )


def test_a_mismatch_shows_both_fingerprints() -> None:
    message = host_key_mismatch("192.0.2.10", "ssh-ed25519 SHA256:b", ["ssh-ed25519 SHA256:a"]).message
    assert "shows the host key ssh-ed25519 SHA256:b; pinned: ssh-ed25519 SHA256:a" in message


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        pytest.param("cp: No space left on device\nFailed to install bootloader\n", "make room in /boot", id="full"),
        pytest.param(
            "error: cannot find a GRUB drive\nFailed to install bootloader\n", "look at boot.loader", id="else"
        ),
    ],
)
def test_a_boot_entry_that_cannot_be_written_says_what_runs_and_what_to_do(said: str, advice: str) -> None:
    answer = boot_entry_failed("192.0.2.10", said)
    assert answer.reason is Reason.BOOT_ENTRY_FAILED
    assert "would boot the one before (Failed to install bootloader)" in answer.message
    assert advice in answer.message


AGENT = f"/var/lib/nixops/agent-{'0' * 64}"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        pytest.param("", "192.0.2.10: claim: exit 2", id="nothing"),
        pytest.param(
            "no activation x on this host\n", "192.0.2.10: claim: no activation x on this host", id="the agent"
        ),
        pytest.param(
            f"{AGENT}: line 951: /var/lib/nixops/activation/lock: Read-only file system",
            "192.0.2.10: claim: /var/lib/nixops/activation/lock: Read-only file system; a file system of 192.0.2.10 is "
            "mounted read-only; look at its kernel's log",
            id="bash, of a disk that cannot be written",
        ),
        pytest.param(
            f"{AGENT}: 951: cannot create /var/lib/nixops/x: No space left on device",
            "192.0.2.10: claim: cannot create /var/lib/nixops/x: No space left on device; the disk of 192.0.2.10 is "
            "full: make room (nix-collect-garbage --delete-older-than 30d), or enlarge it",
            id="dash, of a full one",
        ),
    ],
)
def test_what_a_tool_says_is_told_without_the_agent_s_own_lines(said: str, message: str) -> None:
    assert tool_failed("192.0.2.10", "claim", said, 2) == message


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("error: writing to file: No space left on device", "the disk of 192.0.2.10 is full"),
        ("error: opening lock file: Read-only file system", "a file system of 192.0.2.10 is mounted read-only"),
        (
            "error: executing SQLite statement 'pragma synchronous = normal': unable to open database file",
            "no inode is left",
        ),
    ],
)
def test_a_store_that_takes_nothing_says_what_makes_room(said: str, advice: str) -> None:
    ended = Retry(Reason.COPY_FAILED, "unexpected end-of-file")

    error = copy_failed("192.0.2.10", ended, said, None)

    assert error.reason is Reason.COPY_FAILED
    assert said in error.message
    assert advice in error.message


MIB = 1 << 20
ROOMY = StoreRoom(100 << 30, 40 << 30, 6_000_000, 3_000_000)
NO_SPACE = "error: writing to file: No space left on device"
OF_SQLITE = "error: executing SQLite statement 'pragma synchronous = normal': disk I/O error (in '/nix/var/nix/db')"


@pytest.mark.parametrize(
    ("said", "room", "advice"),
    [
        pytest.param(
            NO_SPACE,
            replace(ROOMY, free=300 * MIB),
            "the disk of 192.0.2.10 is full (300 MiB free in /nix/store): make room (nix-collect-garbage "
            "--delete-older-than 30d), or enlarge it",
            id="more was to come than had room",
        ),
        pytest.param(
            NO_SPACE,
            replace(ROOMY, free_inodes=20),
            "no inode is left for it in /nix/store of 192.0.2.10 (20 are free): make room (nix-collect-garbage "
            "--delete-older-than 30d), or give it a file system with more",
            id="the same words, of inodes",
        ),
        pytest.param(
            NO_SPACE,
            replace(ROOMY, free=300 * MIB, inodes=0, free_inodes=0),
            "is full (300 MiB free",
            id="a file system that makes inodes as it needs them, btrfs",
        ),
        pytest.param(OF_SQLITE, replace(ROOMY, free=0), "is full (0 MiB free", id="SQLite, of a full disk"),
        pytest.param("", replace(ROOMY, free=0), "is full (0 MiB free", id="a daemon that died without a word"),
        pytest.param(
            "unable to open database file", replace(ROOMY, free_inodes=0), "(0 are free)", id="SQLite, without inodes"
        ),
        pytest.param(
            "database or disk is full", replace(ROOMY, free=90 * MIB), "is full (90 MiB", id="its other words"
        ),
        pytest.param(
            "unable to open database file", ROOMY, "or it is read-only", id="there is room, and nothing can be written"
        ),
    ],
)
def test_what_of_the_store_is_used_up_is_told(said: str, room: StoreRoom, advice: str) -> None:
    error = copy_failed("192.0.2.10", Retry(Reason.COPY_FAILED, "unexpected end-of-file"), said, room)

    assert advice in error.message


def test_a_disk_with_room_is_not_blamed() -> None:
    ended = Retry(Reason.COPY_FAILED, "unexpected end-of-file")

    assert copy_failed("192.0.2.10", ended, "", ROOMY) is ended
    assert "enlarge" not in copy_failed("192.0.2.10", ended, OF_SQLITE, ROOMY).message
