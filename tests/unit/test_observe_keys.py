"""What is wanted of keys: from the spec and its Secrets, without the bytes."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest

from fakes.kube import Secret
from nixops_operator.api.reasons import Reason
from nixops_operator.machine.desired import Desired
from nixops_operator.machine.keys import MOST_BYTES, ObservedKeys, observe
from unit.fake_time import run
from unit.machine_bench import PERIOD, Bench


def declared(name: str, secret: str = "tokens", **more: Any) -> dict[str, Any]:
    return {"name": name, "secretRef": {"name": secret, "key": name}, **more}


async def look(bench: Bench) -> ObservedKeys:
    desired = bench.read()
    assert isinstance(desired, Desired)
    return await observe(desired, bench.world)


def seen(data: dict[str, bytes], *keys: dict[str, Any]) -> ObservedKeys:
    async def go() -> ObservedKeys:
        bench = Bench()
        bench.kube.secrets["default", "tokens"] = Secret(data)
        bench.machine(keys=list(keys))
        return await look(bench)

    return run(go())


def told(found: ObservedKeys) -> list[tuple[str, Reason, str]]:
    return [(name, error.reason, error.message) for name, error in found.errors]


def test_a_key_is_wanted_as_its_secret_has_it():
    found = seen({"api": b"\0\xff"}, declared("api", permissions="440"))
    (key,) = found.wanted
    assert (key.name, key.path, key.declared.mode) == ("api", "/run/keys/api", 0o440)
    assert key.sha256 == hashlib.sha256(b"\0\xff").hexdigest()
    assert found.errors == ()


@pytest.mark.parametrize(
    ("given", "path"),
    [
        pytest.param({}, "/run/keys/api", id="nothing said"),
        pytest.param({"directory": "/srv/app"}, "/srv/app/api", id="a folder"),
        pytest.param({"path": "/srv/app/token"}, "/srv/app/token", id="a path"),
    ],
)
def test_where_a_key_lies(given: dict[str, str], path: str):
    (key,) = seen({"api": b""}, declared("api", **given)).wanted
    assert key.path == path


def test_what_is_missing_is_named_and_the_rest_is_wanted():
    found = seen({"api": b"x"}, declared("api"), declared("web"), declared("tls", secret="tls"))
    assert [key.name for key in found.wanted] == ["api"]
    assert told(found) == [
        (
            "web",
            Reason.SECRET_NOT_FOUND,
            "Secret tokens, for the key web, has no key web; it has api: name the right one, or add it",
        ),
        ("tls", Reason.SECRET_NOT_FOUND, "Secret tls, for the key tls, does not exist; create it"),
    ]


def test_what_is_too_large_together_is_not_delivered_at_all():
    half = b"x" * (MOST_BYTES // 2)
    assert len(seen({"a": half, "b": half}, declared("a"), declared("b")).wanted) == 2
    found = seen({"a": half, "b": half + b"x"}, declared("a"), declared("b"))
    assert found.wanted == ()
    assert told(found) == [
        ("", Reason.DELIVERY_FAILED, "the keys of this machine are larger than 4 MiB together; nothing is delivered")
    ]


def test_two_keys_of_one_path_are_refused_and_named():
    found = seen({"a": b"", "b": b""}, declared("a"), declared("b", path="/run/keys/a"))
    assert found.wanted == ()
    assert told(found) == [
        ("", Reason.INVALID_SPEC, "spec.keys[1]: /run/keys/a is the path of the key a, too; name another one")
    ]


@pytest.mark.parametrize("order", [1, -1], ids=["the folder first", "the file in it first"])
def test_a_key_in_the_folder_that_another_one_would_be_is_refused(order):
    keys = [declared("a"), declared("b", path="/run/keys/a/deeper/b")][::order]

    found = seen({"a": b"", "b": b""}, *keys)

    assert found.wanted == ()
    ((_, reason, message),) = told(found)
    assert reason == Reason.INVALID_SPEC
    assert "/run/keys/a/deeper/b lies in /run/keys/a, which is the path of the key a" in message


def test_equal_contents_are_not_known_by_their_digests():
    one, other = seen({"a": b"same", "b": b"same"}, declared("a"), declared("b")).wanted
    assert one.digest != other.digest
    assert hashlib.sha256(b"same").hexdigest() not in (one.digest, other.digest)
    assert one.digest == seen({"a": b"same"}, declared("a")).wanted[0].digest


def test_a_rotation_is_seen_at_the_next_resync_and_a_missing_secret_at_once():
    async def go() -> list[str]:
        bench, seen_ones = Bench(), []
        bench.kube.secrets["default", "tokens"] = Secret({"api": b"one"})
        bench.machine(keys=[declared("api")])
        for change in (b"two", b"three"):
            found = await look(bench)
            seen_ones.append(found.wanted[0].digest)
            bench.kube.secrets["default", "tokens"] = Secret({"api": change})
        await asyncio.sleep(PERIOD.total_seconds())
        seen_ones.append((await look(bench)).wanted[0].digest)
        return seen_ones

    first, second, third = run(go())
    assert first == second != third
