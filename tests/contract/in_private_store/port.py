"""What ports.nix promises, on Nix' programs and on the Nix in memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from contract.nix_bench import nixpkgs_folder, request
from fakes.nix import FakeNix
from nixops_operator.adapters.nix.sandboxed_nix import SandboxedNix
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, InvalidSpec, Retry
from nixops_operator.facts.nix import EvaluationRequest, Source
from nixops_operator.ports.nix import Nix


@pytest.fixture(params=["in memory", "programs"])
def port(request: pytest.FixtureRequest, nix: SandboxedNix) -> Nix:
    return FakeNix() if request.param == "in memory" else nix


async def asked(port: Nix, text: str = "{ }") -> EvaluationRequest:
    return request(await port.add_path(nixpkgs_folder()), text, public_key=port.public_key)


async def test_a_tree_has_the_same_path_everywhere(port: Nix) -> None:
    source = await port.add_tree({"a": b"1", "b/c": b"2"})
    assert source == Source(
        "/nix/store/cis058pb1jb7k89f7d41lqbwh6n3ji6d-source", "sha256-l8su7DiUHZLWrvwUSvDsi7n91HSmAbbcj+1WUlNSt1I="
    )
    assert await port.add_tree({"b/c": b"2", "a": b"1"}) == source


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../x", "a//b", "./a", ""])
async def test_a_tree_keeps_to_itself(port: Nix, name: str) -> None:
    with pytest.raises(InvalidSpec, match=r"^spec\.configuration\.source: "):
        await port.add_tree({name: b""})


async def test_a_folder_that_is_not_there(port: Nix, tmp_path: Path) -> None:
    with pytest.raises(Blocked, match=r"setting nix\.nixpkgs\.path") as failed:
        await port.add_path(tmp_path / "nowhere")
    assert failed.value.reason is Reason.SOURCE_NOT_FOUND


async def test_equal_requests_have_equal_systems_and_others_do_not(port: Nix) -> None:
    wanted = await asked(port)
    first = await port.evaluate(wanted)
    assert await port.evaluate(wanted) == first
    assert (await port.evaluate(replace(wanted, name="database"))).toplevel != first.toplevel


async def test_a_source_that_is_not_in_the_store(port: Nix) -> None:
    lost = Source(
        "/nix/store/66lcyzm77nq9j5ayd861lbj0shg3mqvv-source", "sha256-l8su7DiUHZLWrvwUSvDsi7n91HSmAbbcj+1WUlNSt1I="
    )
    with pytest.raises(Blocked) as failed:
        await port.evaluate(replace(await asked(port), source=lost))
    assert failed.value.reason is Reason.SOURCE_NOT_FOUND


async def test_what_was_evaluated_is_built_to_what_was_said(port: Nix) -> None:
    evaluation = await port.evaluate(await asked(port))
    assert await port.build(evaluation.drv_path, lambda _: None) == evaluation.toplevel
    assert await port.build(evaluation.drv_path, lambda _: None) == evaluation.toplevel


async def test_a_derivation_that_is_not_in_the_store(port: Nix) -> None:
    with pytest.raises(Blocked) as failed:
        await port.build("/nix/store/66lcyzm77nq9j5ayd861lbj0shg3mqvv-a.drv", lambda _: None)
    assert failed.value.reason is Reason.BUILD_FAILED


async def test_what_was_not_built_is_not_copied(port: Nix, tmp_path: Path) -> None:
    evaluation = await port.evaluate(await asked(port, '{ networking.hostName = "unbuilt"; }'))
    with pytest.raises(Retry) as failed:
        await port.copy(evaluation.toplevel, tmp_path / "socket", lambda _: None)
    assert failed.value.reason is Reason.COPY_FAILED


async def test_what_was_given_to_somebody_survives_a_collection(port: Nix) -> None:
    """Until he has had time to say what he needs it for."""
    wanted = await asked(port, '{ networking.hostName = "given"; }')
    await port.collect(lambda: (), 2**50)
    evaluation = await port.evaluate(wanted)
    await port.collect(lambda: (), 2**50)
    toplevel = await port.build(evaluation.drv_path, lambda _: None)
    await port.collect(lambda: (), 2**50)
    assert await port.build(evaluation.drv_path, lambda _: None) == toplevel == evaluation.toplevel


async def test_room_is_told_in_bytes(port: Nix) -> None:
    assert (await port.space()).free > 1024**2
