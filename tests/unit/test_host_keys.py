"""The Secret with a machine's pinned host keys: believed and written only if it is that machine's own."""

from __future__ import annotations

import pytest

from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, Retry
from nixops_operator.facts.kube import Secret
from nixops_operator.machine.host_keys import Pins, pins, pins_secret

UID = "00000000-0000-4000-8000-000000000001"
KEY = "ssh-ed25519 AAAA"
GOOD = pins_secret("i-1", (KEY,), None)


def secret(*owners: str, **data: bytes) -> Secret:
    return Secret("web-host-keys", "uid", "1", GOOD | data, frozenset(owners))


def test_what_was_written_is_read_back():
    written = Secret("web-host-keys", "uid", "1", pins_secret("i-1", (KEY,), "client"), frozenset({UID}))

    assert pins(written, UID) == Pins("i-1", (KEY,), launches_left=True, client_key="client", is_known=True)


def test_pins_of_an_earlier_release_are_kept():
    earlier = {name: GOOD[name] for name in ("instanceId", "pinned", "launchesLeft")}

    assert pins(Secret("web-host-keys", "uid", "1", earlier, frozenset({UID})), UID) == Pins("i-1", (KEY,), True)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param({"pinned": b"no JSON"}, id="no list of keys"),
        pytest.param({"pinned": b"[]"}, id="no key"),
        pytest.param({"pinned": b"7"}, id="a number"),
        pytest.param({"pinned": b"\xff"}, id="no text"),
        pytest.param({"instanceId": b"\xff"}, id="no id"),
        pytest.param({"staged": b"\xff"}, id="no staged key"),
    ],
)
def test_a_damaged_secret_is_none_and_made_anew(damage: dict[str, bytes]):
    """KeyError in every pass, while Ready stayed True."""
    assert pins(secret(UID, **damage), UID) == Pins()


def test_a_secret_from_which_a_field_was_taken_is_none():
    empty = Secret("web-host-keys", "uid", "1", {}, frozenset({UID}))

    assert pins(empty, UID) == Pins()


def test_a_secret_of_an_earlier_machine_is_waited_out():
    with pytest.raises(Retry, match="waiting for it to go") as waiting:
        pins(secret("another uid"), UID)

    assert waiting.value.reason is Reason.ADOPTION_CONFLICT


def test_a_users_own_secret_of_that_name_is_neither_believed_nor_written():
    with pytest.raises(Blocked, match="is not the operator's") as refused:
        pins(secret(), UID)

    assert refused.value.reason is Reason.ADOPTION_CONFLICT
