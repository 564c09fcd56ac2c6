"""Secrets and ConfigMaps are read once for many passes, and anew where they may have changed."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import timedelta

from fakes.kube import FakeKube, Secret
from nixops_operator.reads import SECRET_LASTS, Reads
from unit.fake_time import run

MINUTE = timedelta(minutes=1)
PLACE = ("default", "aws")


def reading(kube: FakeKube) -> int:
    return len([call for call in kube.effects.calls if call.effect in ("read_secret", "get_config_map")])


def test_a_secret_that_a_thousand_machines_share_is_read_once():
    async def go() -> int:
        kube = FakeKube()
        kube.secrets[PLACE] = Secret({"key": b"one"})
        reads = Reads(kube, MINUTE)
        for _ in range(1000):
            assert (await reads.secret(*PLACE)) is not None
        return reading(kube)

    assert run(go()) == 1


def test_a_rotated_secret_is_noticed_after_a_while_and_at_once_where_the_old_one_was_refused():
    async def go() -> list[bytes]:
        kube = FakeKube()
        kube.secrets[PLACE] = Secret({"key": b"one"})
        reads = Reads(kube, MINUTE)
        seen = []

        async def see() -> None:
            secret = await reads.secret(*PLACE)
            assert secret is not None
            seen.append(secret.data["key"])

        await see()
        kube.secrets[PLACE] = Secret({"key": b"two"})
        await see()
        await asyncio.sleep(SECRET_LASTS.total_seconds())
        await see()
        kube.secrets[PLACE] = Secret({"key": b"three"})
        reads.forget_secret(*PLACE)
        await see()
        return seen

    assert run(go()) == [b"one", b"one", b"two", b"three"]


def test_a_request_to_look_reads_everything_of_its_own_namespace_anew():
    async def go() -> int:
        kube = FakeKube()
        for namespace in ("default", "elsewhere"):
            kube.secrets[namespace, "aws"] = Secret({"key": b"one"})
            kube.config_maps[namespace, "source"] = {"web.nix": b"{ }"}
        reads = Reads(kube, MINUTE)

        async def see() -> None:
            for namespace in ("default", "elsewhere"):
                assert await reads.secret(namespace, "aws") is not None
                assert await reads.config_map(namespace, "source") is not None

        await see()
        before = reading(kube)
        reads.look_anew("default")
        await see()
        return reading(kube) - before

    assert run(go()) == 2


def test_what_does_not_exist_is_asked_for_each_time_and_what_did_is_still_known():
    async def go() -> tuple[int, bytes]:
        kube = FakeKube()
        reads = Reads(kube, MINUTE)
        assert await reads.secret(*PLACE) is None
        assert await reads.secret(*PLACE) is None
        kube.secrets[PLACE] = Secret({"key": b"one"})
        assert await reads.secret(*PLACE) is not None
        del kube.secrets[PLACE]
        reads.forget_secret(*PLACE)
        assert await reads.secret(*PLACE) is None
        last = reads.last_secret(*PLACE)
        assert last is not None
        return reading(kube), last.data["key"]

    assert run(go()) == (4, b"one")


def test_a_config_map_is_read_anew_at_each_resync():
    async def go() -> int:
        kube = FakeKube()
        kube.config_maps[PLACE] = {"web.nix": b"{ }"}
        reads = Reads(kube, MINUTE)
        await reads.config_map(*PLACE)
        await reads.config_map(*PLACE)
        await asyncio.sleep(54)
        await reads.config_map(*PLACE)
        return reading(kube)

    assert run(go()) == 2


def test_what_a_key_of_a_machine_holds_is_asked_anew_at_each_resync_and_no_byte_of_it_is_kept():
    async def go() -> tuple[list[str], int, str]:
        kube = FakeKube()
        kube.secrets[PLACE] = Secret({"key": b"one"})
        reads = Reads(kube, MINUTE)
        seen = []

        async def see() -> None:
            contents = await reads.contents(*PLACE)
            assert contents is not None
            seen.append(contents["key"].sha256)

        await see()
        kube.secrets[PLACE] = Secret({"key": b"two"})
        await see()
        await asyncio.sleep(54)
        await see()
        kube.secrets[PLACE] = Secret({"key": b"three"})
        reads.forget_secret(*PLACE)
        await see()
        return seen, reading(kube), repr(await reads.contents(*PLACE))

    seen, asked, shown = run(go())
    assert seen == [hashlib.sha256(text).hexdigest() for text in (b"one", b"one", b"two", b"three")]
    assert asked == 3
    assert seen[-1] not in shown
