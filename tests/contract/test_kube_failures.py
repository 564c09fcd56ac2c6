"""The Kubernetes adapter where the API server refuses, is slow, or is not there: what only a real connection shows."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from component.conftest import ApiServer
from contract.kube_worlds import RealWorld, event, key, machine, real_world
from nixops_operator.adapters.kube import Connection, KubernetesApi, api, connection
from nixops_operator.adapters.kube.events import EventPoster
from nixops_operator.adapters.kube.rate import RateLimit
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, Conflict, InvalidSpec, OutcomeUnknown, Retry
from nixops_operator.facts.kube import Body, Kind, Secret

Answer = Callable[[str], bytes | None]
"""Request line → reply; None cuts the connection."""


def reply(status: int, content: object, headers: str = "") -> bytes:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n{headers}\r\n"
    return head.encode() + body


@asynccontextmanager
async def server(answer: Answer, folder: Path) -> AsyncIterator[tuple[KubernetesApi, list[str]]]:
    """An API server that says what a test wants; and the requests it got, whole."""
    received: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next((int(line[15:]) for line in head.splitlines() if line.lower().startswith("content-length")), 0)
        received.append(head + (await reader.readexactly(length)).decode())
        if (content := answer(head.splitlines()[0])) is not None:
            writer.write(content)
            await writer.drain()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    config = kubeconfig(folder / "config", f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", "first")
    opened = await Connection.open(str(config))
    try:
        yield KubernetesApi(opened), received
    finally:
        await opened.close()
        listening.close()
        await listening.wait_closed()


def kubeconfig(path: Path, url: str, token: str) -> Path:
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "x", "cluster": {"server": url}}],
                "users": [{"name": "x", "user": {"token": token}}],
                "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
                "current-context": "x",
            }
        )
    )
    return path


BODY = machine("shop") | {"metadata": {"namespace": "shop", "name": "web", "uid": "u", "resourceVersion": "1"}}


def writes(kube: KubernetesApi) -> list[Awaitable[Any]]:
    return [
        kube.add_finalizer(BODY),
        kube.patch_status(BODY, {"observedGeneration": 1}),
        kube.create_machine(BODY),
        kube.delete_machine(BODY),
        kube.create_secret("shop", "keys", {"a": b"1"}, owner=None, type_="Opaque", immutable=True),
    ]


async def listed(kube: KubernetesApi) -> list[Body]:
    return [body async for page in kube.list(Kind.MACHINE) for body in page.bodies]


async def test_a_cut_connection_leaves_a_write_open_and_a_look_not(tmp_path: Path) -> None:
    async with server(lambda _: None, tmp_path) as (kube, _):
        for call in writes(kube):
            with pytest.raises(OutcomeUnknown):
                await call
        with pytest.raises(Retry) as refused:
            await kube.get(key("shop"))
        assert type(refused.value) is Retry


async def test_nobody_listens(tmp_path: Path) -> None:
    async with server(lambda _: None, tmp_path) as (_, __):
        config = yaml.safe_load((tmp_path / "config").read_text())
    opened = await Connection.open(str(tmp_path / "config"))
    kube = KubernetesApi(opened)
    for call in [*writes(kube), kube.get(key("shop"))]:
        with pytest.raises(Retry) as refused:
            await call
        # Nothing was sent, so nothing can have happened.
        assert type(refused.value) is Retry
        assert config["users"][0]["user"]["token"] not in refused.value.message
    await opened.close()


async def test_a_netrc_file_of_whoever_runs_it_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its password would take the place of the token, and be refused beside it."""
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    async with server(lambda _: reply(200, BODY), tmp_path) as (kube, received):
        assert await kube.get(key("shop")) == BODY

    assert "authorization: bearer first" in received[0].lower()


async def test_a_proxy_that_the_environment_names_is_gone_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with server(lambda _: reply(200, BODY), tmp_path) as (_, received):
        proxy = yaml.safe_load((tmp_path / "config").read_text())["clusters"][0]["cluster"]["server"]
        monkeypatch.setenv("http_proxy", proxy)
        monkeypatch.setenv("no_proxy", "there.example")
        through = await Connection.open(str(kubeconfig(tmp_path / "far", "http://api.example", "first")))
        assert await KubernetesApi(through).get(key("shop")) == BODY
        await through.close()

    assert received[0].startswith("GET http://api.example/apis/")


async def test_an_address_that_needs_no_proxy_is_asked_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    async with server(lambda _: reply(200, BODY), tmp_path) as (kube, received):
        assert await kube.get(key("shop")) == BODY

    assert received[0].startswith("GET /apis/")


@pytest.mark.parametrize("status", [500, 502, 504])
async def test_an_internal_error_leaves_a_write_open(tmp_path: Path, status: int) -> None:
    async with server(lambda _: reply(status, b"<html>bad gateway</html>"), tmp_path) as (kube, _):
        for call in writes(kube):
            with pytest.raises(OutcomeUnknown):
                await call
        with pytest.raises(Retry) as refused:
            await kube.get(key("shop"))
        assert type(refused.value) is Retry


async def test_what_is_refused_of_a_secret_is_not_told(tmp_path: Path) -> None:
    sent = base64.b64encode(b"hush").decode()
    refusal = {"reason": "Invalid", "message": f"{sent} is not valid", "details": {"kind": "Secret"}}
    async with server(lambda _: reply(422, refusal), tmp_path) as (kube, received):
        for call in (
            kube.create_secret("shop", "keys", {"a": b"hush"}, owner=None, type_="Opaque", immutable=True),
            kube.update_secret("shop", Secret("keys", "u", "1", {}), {"a": b"hush"}),
        ):
            with pytest.raises(Blocked) as refused:
                await call
            assert "shop/keys" in refused.value.message
            assert sent not in refused.value.message

    assert all(sent in one for one in received)


async def test_too_many_requests_says_when_to_come_back(tmp_path: Path) -> None:
    async with server(lambda _: reply(429, {"reason": "TooManyRequests"}, "Retry-After: 7\r\n"), tmp_path) as (kube, _):
        with pytest.raises(Retry) as refused:
            await kube.patch_status(BODY, {"observedGeneration": 1})

    assert type(refused.value) is Retry
    assert refused.value.after is not None
    assert refused.value.after.total_seconds() == 7


@pytest.mark.parametrize("content", [b"", b"<html></html>", b"[]"], ids=["empty", "a page", "a list"])
async def test_a_reply_that_is_no_object_is_no_reply(tmp_path: Path, content: bytes) -> None:
    async with server(lambda _: reply(200, content), tmp_path) as (kube, _):
        with pytest.raises(OutcomeUnknown):
            await kube.patch_status(BODY, {"observedGeneration": 1})
        with pytest.raises(Retry):
            await listed(kube)


async def test_a_list_without_items_is_not_an_empty_list(tmp_path: Path) -> None:
    async with server(lambda _: reply(200, {"metadata": {"resourceVersion": "1"}}), tmp_path) as (kube, _):
        with pytest.raises(Retry):
            await listed(kube)


async def test_a_list_that_cannot_be_continued_is_none(tmp_path: Path) -> None:
    """The API server continues a list for about five minutes, until etcd is compacted."""

    def answer(request: str) -> bytes:
        if "continue=" in request:
            return reply(410, {"kind": "Status", "reason": "Expired", "message": "the continue parameter is too old"})
        return reply(200, {"metadata": {"resourceVersion": "7", "continue": "there"}, "items": []})

    async with server(answer, tmp_path) as (kube, _):
        with pytest.raises(Retry, match="too old"):
            await listed(kube)


async def test_every_request_says_who_we_are(tmp_path: Path) -> None:
    async with server(lambda _: reply(200, BODY), tmp_path) as (kube, received):
        await kube.get(key("shop"))

    headers = {line.partition(": ")[0].lower(): line.partition(": ")[2] for line in received[0].splitlines()}
    assert headers["user-agent"].startswith("nixops-operator/")
    assert headers["authorization"] == "Bearer first"


async def test_a_renewed_token_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with server(lambda _: reply(200, BODY), tmp_path) as (kube, received):
        await kube.get(key("shop"))
        url = yaml.safe_load((tmp_path / "config").read_text())["clusters"][0]["cluster"]["server"]
        kubeconfig(tmp_path / "config", url, "second")
        await kube.get(key("shop"))
        monkeypatch.setattr(connection, "TOKEN_LIFE", 0)
        await kube.get(key("shop"))
        (tmp_path / "config").write_text("half: [")
        await kube.get(key("shop"))

    tokens = [line.split()[2] for one in received for line in one.splitlines() if "Bearer" in line]
    assert tokens == ["first", "first", "second", "second"]


async def test_a_list_is_read_page_by_page(crds: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "PAGE", "2")
    async with real_world(crds.kubeconfig) as world:
        for number in range(5):
            await world.apply(machine(world.namespace, f"web-{number}"))

        bodies = await listed(world.kube)

    ours = [body["metadata"]["name"] for body in bodies if body["metadata"]["namespace"] == world.namespace]
    assert ours == [f"web-{number}" for number in range(5)]


async def test_an_invalid_spec_is_told_in_the_servers_words(crds: ApiServer) -> None:
    async with real_world(crds.kubeconfig) as world:
        with pytest.raises(Blocked) as refused:
            await world.kube.create_machine(machine(world.namespace, target={}))
        assert refused.value.reason is Reason.INVALID_SPEC
        assert "target" in refused.value.message

        body = await world.apply(machine(world.namespace))
        with pytest.raises(Blocked) as refused:
            await world.kube.replace_machine_spec(body, {}, {})
        assert refused.value.reason is Reason.INVALID_SPEC
        assert not isinstance(refused.value, InvalidSpec)


async def test_what_the_operator_may_not_do_is_told_as_such(crds: ApiServer, tmp_path: Path) -> None:
    crds.kubectl("create", "serviceaccount", "nobody", "--namespace=default")
    token = crds.kubectl("create", "token", "nobody", "--namespace=default").strip()
    config = yaml.safe_load(crds.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": token}
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    opened = await Connection.open(str(tmp_path / "config"))
    kube = KubernetesApi(opened)

    for call in [*writes(kube), kube.get(key("shop")), listed(kube), kube.cluster_id()]:
        with pytest.raises(Blocked) as refused:
            await call
        assert refused.value.reason is Reason.ACCESS_DENIED
        assert token not in refused.value.message
    await opened.close()


def create_machine(world: RealWorld) -> Awaitable[object]:
    return world.kube.create_machine(machine(world.namespace))


def create_secret(world: RealWorld) -> Awaitable[object]:
    return world.kube.create_secret(world.namespace, "keys", {"a": b"hush"}, owner=None, type_="Opaque", immutable=True)


@pytest.mark.parametrize(
    ("counted", "create"),
    [
        pytest.param("count/nixmachines.nixops.dev", create_machine, id="of machines"),
        pytest.param("secrets", create_secret, id="of Secrets"),
    ],
)
async def test_a_used_up_quota_is_told_as_such(
    crds: ApiServer, counted: str, create: Callable[[RealWorld], Awaitable[object]]
) -> None:
    """Not as a right that is missing: another person has to do another thing."""
    async with real_world(crds.kubeconfig) as world:
        await world.put_quota("small", {counted: "0"})

        with pytest.raises(Blocked) as refused:
            await create(world)

    assert refused.value.reason is Reason.QUOTA_EXCEEDED
    assert "ResourceQuota small is used up" in refused.value.message
    assert f"limited: {counted}=0" in refused.value.message


async def test_what_is_wrong_in_a_secret_is_told_by_its_field(crds: ApiServer) -> None:
    async with real_world(crds.kubeconfig) as world:
        with pytest.raises(Blocked) as refused:
            await world.kube.create_secret(
                world.namespace, "keys", {"not a key": b"hush"}, owner=None, type_="Opaque", immutable=True
            )

    assert refused.value.reason is Reason.INVALID_SPEC
    assert "data[not a key]" in refused.value.message
    assert "hush" not in refused.value.message
    assert base64.b64encode(b"hush").decode() not in refused.value.message


async def test_a_refused_value_is_not_repeated_without_end(crds: ApiServer) -> None:
    async with real_world(crds.kubeconfig) as world:
        with pytest.raises(Blocked) as refused:
            await world.kube.create_machine(machine(world.namespace, target={"host": {"address": "!" * 5000}}))

    assert "spec.target.host.address" in refused.value.message
    assert len(refused.value.message) < 1000


async def test_an_unknown_token_is_tried_again(crds: ApiServer, tmp_path: Path) -> None:
    config = yaml.safe_load(crds.kubeconfig.read_text())
    config["users"][0]["user"] = {"token": "unknown"}
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    opened = await Connection.open(str(tmp_path / "config"))

    with pytest.raises(Retry) as refused:
        await KubernetesApi(opened).get(key("shop"))

    assert not isinstance(refused.value, Conflict)
    await opened.close()


async def test_an_event_that_was_deleted_is_made_anew(crds: ApiServer) -> None:
    async with real_world(crds.kubeconfig) as world:
        body = await world.apply(machine(world.namespace))
        await world.kube.post_event(event(body, "started"))
        await world.connection.request("DELETE", f"/api/v1/namespaces/{world.namespace}/events", "delete events")

        await world.kube.post_event(event(body, "started"))

        assert await world.event_counts("web") == [("started", 1)]


async def test_an_event_is_shown_by_describe(crds: ApiServer) -> None:
    async with real_world(crds.kubeconfig) as world:
        body = await world.apply(machine(world.namespace))
        await world.kube.post_event(event(body, "x" * 2000))

        described = await asyncio.to_thread(
            crds.kubectl, "describe", "nixmachine", "web", f"--namespace={world.namespace}"
        )

    assert "nixops-operator" in described
    assert "x" * 1000 in described


class CountedMoment(float):
    """Counts how often moments are compared."""

    comparisons = 0

    def __le__(self, other: float) -> bool:
        CountedMoment.comparisons += 1
        return super().__le__(other)

    def __gt__(self, other: float) -> bool:
        CountedMoment.comparisons += 1
        return super().__gt__(other)


async def test_a_new_event_does_not_walk_over_all_that_were_posted(tmp_path: Path) -> None:
    async with server(lambda _: reply(200, {}), tmp_path) as (_, received):
        opened = await Connection.open(str(tmp_path / "config"))
        poster = EventPoster(opened, monotonic=lambda: CountedMoment(100))
        for number in range(40):
            await poster.post(event(BODY, f"message {number}"))
        await opened.close()

    assert len(received) == 40
    assert CountedMoment.comparisons <= 40


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(round(seconds, 6))
        self.now += seconds


async def test_requests_beyond_the_burst_wait_for_their_turn() -> None:
    clock = Clock()
    rate = RateLimit(10, burst=3, monotonic=clock, sleep=clock.sleep)

    for _ in range(5):
        await rate.wait()
    assert clock.slept == [0.1, 0.1]

    clock.now += 100
    for _ in range(4):
        await rate.wait()
    assert clock.slept == [0.1, 0.1, 0.1]
