"""What an evaluation must not reach. Each attack has its harmless twin in evaluation.py, or beside it."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from contract.nix_bench import BOX, evaluator_in, listener, request, store
from nixops_operator.adapters.nix.boxes import landlock, namespaces, seccomp
from nixops_operator.adapters.nix.boxes.box import Box, BoxKind, EvaluationLimits, Running
from nixops_operator.adapters.nix.disk import Disk
from nixops_operator.adapters.nix.evaluator import Evaluator
from nixops_operator.adapters.nix.probe import SandboxUnsafe, probe
from nixops_operator.adapters.nix.sandboxed_nix import SandboxedNix, box_of
from nixops_operator.errors import Blocked
from nixops_operator.facts.nix import Evaluation, Source
from nixops_operator.nix.evaluation_errors import Names
from nixops_operator.nix.nar import nar_of, padded
from nixops_operator.nix.store_paths import text_path, tree_path

SECRET = "cafe5ec4e7cafe5ec4e7"


@pytest.fixture
def evaluator(scratch: Path) -> Evaluator:
    return evaluator_in(scratch, EvaluationLimits())


async def outcome(evaluator: Evaluator, expression: str) -> str:
    """The JSON of its value, or the message of its error."""
    try:
        return await evaluator.value(expression)
    except Blocked as error:
        return error.message


async def test_a_module_is_held_as_any_expression(nix: SandboxedNix, nixpkgs: Source) -> None:
    module = '{ networking.hostName = builtins.readFile "/etc/passwd"; }'
    with pytest.raises(
        Blocked, match=r"^modules\[0\]:1:25: access to absolute path '/etc(/passwd)?' is forbidden in pure eval"
    ):
        await nix.evaluate(request(nixpkgs, module))


async def test_the_control_has_a_value(evaluator: Evaluator) -> None:
    assert await outcome(evaluator, "1 + 1") == "2"


@pytest.mark.parametrize(
    "expression",
    [
        pytest.param('builtins.readFile "{file}"', id="read a host file"),
        pytest.param("builtins.readFile {file}", id="read a host file by its path"),
        pytest.param("import {file}", id="import a host file"),
        pytest.param('builtins.attrNames (builtins.readDir "{folder}")', id="list a host folder"),
        pytest.param('builtins.readFile "/proc/self/environ"', id="read its own environment"),
        pytest.param(
            'builtins.readFile "${{builtins.path {{ path = "{file}"; }}}}"', id="copy a host file to the store"
        ),
        pytest.param('"${{builtins.filterSource (_: _: true) {folder}}}"', id="copy a host folder to the store"),
        pytest.param("builtins.storePath /nix/store", id="the store itself"),
    ],
)
async def test_host_files_are_out_of_reach(evaluator: Evaluator, scratch: Path, expression: str) -> None:
    file = scratch / "secret.nix"
    file.write_text(f'"{SECRET}"')
    message = await outcome(evaluator, expression.format(file=file, folder=scratch))
    assert re.search(r"forbidden in pure eval|not allowed to refer|is not allowed|not in the Nix store", message)
    assert SECRET not in message


@pytest.mark.parametrize("name", ["HOME", "PATH", "NIX_CONFIG", "NIX_CONF_DIR", "NIXPKGS"])
async def test_the_environment_is_empty(evaluator: Evaluator, name: str) -> None:
    assert await outcome(evaluator, f'builtins.getEnv "{name}"') == '""'


@pytest.mark.parametrize("name", ["exec", "currentSystem", "currentTime", "importNative"])
async def test_what_would_make_it_impure_does_not_exist(evaluator: Evaluator, name: str) -> None:
    assert await outcome(evaluator, f"builtins ? {name}") == "false"


HASH = "0" * 52


@pytest.mark.parametrize(
    "expression",
    [
        pytest.param('builtins.fetchurl "http://127.0.0.1:{port}/x"', id="fetchurl"),
        pytest.param(
            'builtins.fetchurl {{ url = "http://127.0.0.1:{port}/x"; sha256 = "' + HASH + '"; }}',
            id="fetchurl with a hash",
        ),
        pytest.param(
            'builtins.fetchTarball {{ url = "http://127.0.0.1:{port}/x"; sha256 = "' + HASH + '"; }}', id="fetchTarball"
        ),
        pytest.param(
            'builtins.fetchGit {{ url = "http://127.0.0.1:{port}/x"; rev = "' + "0" * 40 + '"; }}', id="fetchGit"
        ),
        pytest.param('builtins.getFlake "http://127.0.0.1:{port}/x"', id="getFlake"),
    ],
)
async def test_there_is_no_network(evaluator: Evaluator, expression: str) -> None:
    async with listener() as (port, seen):
        await outcome(evaluator, expression.format(port=port))
        assert seen == []
        # The control: from here, the port does answer.
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        await writer.wait_closed()
    assert len(seen) == 1


async def test_no_builder_runs_in_an_evaluation(evaluator: Evaluator) -> None:
    builder = (
        'derivation { name = "x"; system = "x86_64-linux"; builder = "/bin/sh"; args = [ "-c" "echo built >$out" ]; }'
    )
    message = await outcome(evaluator, f"builtins.readFile ({builder})")
    assert message != '"built\\n"'
    assert "import from derivation" in message.lower() or "allow-import-from-derivation" in message


@pytest.mark.parametrize("expression", ['builtins.readFile "{path}/secret"', 'import "{path}/secret"'])
async def test_another_source_of_the_store_is_not_there(
    nix: SandboxedNix, evaluator: Evaluator, expression: str
) -> None:
    other = await nix.add_tree({"secret": f'"{SECRET}"'.encode()})
    message = await outcome(evaluator, expression.format(path=other.store_path))
    assert SECRET not in message


async def test_not_even_by_its_hash_unless_it_is_given(nix: SandboxedNix, evaluator: Evaluator) -> None:
    other = await nix.add_tree({"secret": f'"{SECRET}"'.encode()})
    tree = f'builtins.path {{ name = "source"; path = "{other.store_path}"; sha256 = "{other.nar_hash}"; }}'
    expression = f'builtins.readFile "${{{tree}}}/secret"'
    assert SECRET not in await outcome(evaluator, expression)
    assert SECRET in await evaluator.value(expression, [other.store_path])


# A broken evaluator: its place is taken by a program that says what the test wants.

OWN = ("base64", "-d")


def export(*paths: tuple[str, bytes, tuple[str, ...]]) -> bytes:
    """An export stream of these texts: path, content, references."""
    stream = b""
    for path, content, references in paths:
        nar = b"".join(map(padded, (b"nix-archive-1", b"(", b"type", b"regular", b"contents", content, b")")))
        stream += (1).to_bytes(8, "little") + nar + b"NIXE\0\0\0\0" + padded(path.encode())
        stream += len(references).to_bytes(8, "little") + b"".join(padded(each.encode()) for each in references)
        stream += padded(b"") + bytes(8)
    return stream + bytes(8)


def output(drv: str, toplevel: str, announced: tuple[str, ...], stream: bytes) -> bytes:
    head = f'{{"drvPath":"{drv}","toplevel":"{toplevel}","warnings":[]}}\n'
    return (head + "".join(f"{path}\n" for path in announced) + "\n").encode() + stream


class LyingBox:
    """In it a program takes the place of the evaluation that says what it is told to."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self.kind = box.kind
        self.not_made = box.not_made

    def run(
        self, command: Sequence[str] | None, sources: Sequence[str], registration: bytes, tenant: str | None
    ) -> AbstractAsyncContextManager[Running]:
        return self._box.run(command or OWN, sources, registration, tenant)


class Lying:
    """An evaluator whose process says what it is told to."""

    def __init__(self, scratch: Path) -> None:
        limits, disk = EvaluationLimits(), Disk((scratch,), 0)
        self._evaluator = Evaluator(scratch, LyingBox(box_of(BOX, scratch, limits, disk)), limits, 1, disk)

    async def evaluate(self, said: bytes) -> Evaluation:
        return await self._evaluator.evaluate(base64.b64encode(said).decode(), (), Names({}), None)


@pytest.fixture
def lying(scratch: Path) -> Lying:
    return Lying(scratch)


def content_of(store_path: str) -> bytes:
    return Path(store_path).read_bytes()


async def is_valid(path: str) -> bool:
    return await store("nix-store", "--check-validity", "--print-invalid", path) == ""


async def test_a_derivation_under_its_own_name_is_taken(lying: Lying) -> None:
    text = await store("nix-instantiate", "--expr", 'derivation { name = "t"; system = "s"; builder = "b"; }')
    content = content_of(text)
    out = await store("nix-store", "--query", "--outputs", text)
    evaluation = await lying.evaluate(output(text, out, (text,), export((text, content, ()))))
    assert evaluation.toplevel == out


async def test_a_forged_path_is_refused_and_not_stored(lying: Lying) -> None:
    forged = text_path("evil.drv", b"something else", ())
    with pytest.raises(Blocked, match=r"evil\.drv does not follow from its content"):
        await lying.evaluate(output(forged, forged, (forged,), export((forged, b"evil", ()))))
    assert not await is_valid(forged)


async def test_a_forged_tree_is_refused_and_not_stored(lying: Lying) -> None:
    forged = tree_path("source", nar_of({"a": b"honest"}))
    with pytest.raises(Blocked, match="does not follow from its content"):
        await lying.evaluate(output(forged + ".drv", forged, (forged,), export((forged, b"evil", ()))))
    assert not await is_valid(forged)


async def test_a_path_of_the_store_keeps_its_content(lying: Lying, nix: SandboxedNix) -> None:
    honest = await nix.add_tree({"a": b"honest"})
    drv = text_path("x.drv", b"x", ())
    stream = export((honest.store_path, b"evil", ()), (drv, b"x", ()))
    with pytest.raises(Blocked):
        await lying.evaluate(output(drv, honest.store_path, (honest.store_path, drv), stream))
    assert (Path(honest.store_path) / "a").read_bytes() == b"honest"


async def test_a_derivation_that_was_taken_before_is_not_taken_without_its_source(lying: Lying) -> None:
    source = text_path("source-of-t3", b"1", ())
    inner = 'derivation { name = "t3"; system = "s"; builder = "b"; x = builtins.toFile "source-of-t3" "1"; }'
    outer = f'derivation {{ name = "t4"; system = "s"; builder = "b"; x = {inner}; }}'
    needed, drv = await store("nix-instantiate", "--expr", inner), await store("nix-instantiate", "--expr", outer)
    out = await store("nix-store", "--query", "--outputs", drv)
    paths = ((source, b"1", ()), (needed, content_of(needed), (source,)), (drv, content_of(drv), (needed,)))
    announced = (source, needed, drv)
    for _ in range(2):
        assert (await lying.evaluate(output(drv, out, announced, export(*paths)))).toplevel == out
    with pytest.raises(Blocked, match="it is built from source-of-t3, which this evaluation was not given"):
        await lying.evaluate(output(drv, out, announced[1:], export(*paths[1:])))


async def test_a_system_that_is_not_its_derivation_s_output_is_refused(lying: Lying) -> None:
    drv = await store("nix-instantiate", "--expr", 'derivation { name = "t2"; system = "s"; builder = "b"; }')
    other = text_path("t2", b"", ())
    with pytest.raises(Blocked, match="the system is not an output of its derivation"):
        await lying.evaluate(output(drv, other, (drv,), export((drv, content_of(drv), ()))))


@pytest.mark.parametrize(
    ("said", "why"),
    [
        pytest.param(b"", "it breaks off", id="nothing"),
        pytest.param(b'{"drvPath":"x"}\n', "not a system", id="half a system"),
        pytest.param(b"no JSON\n", "not JSON", id="no JSON"),
        pytest.param(
            output("/nix/store/../../etc/x.drv", "/nix/store/../../etc/x", (), b""),
            "not a system",
            id="a path elsewhere",
        ),
        pytest.param(
            output(text_path("x.drv", b"", ()), text_path("x", b"", ()), ("/etc/passwd",), b""),
            "not a list of store paths",
            id="announces a path elsewhere",
        ),
        pytest.param(
            output(text_path("x.drv", b"", ()), text_path("x", b"", ()), (text_path("x.drv", b"", ()),), b"garbage!"),
            "unknown mark",
            id="no export",
        ),
        pytest.param(b"x" * (4 * 1024**2 + 2), "more than 4 MiB", id="more than 4 MiB"),
    ],
)
async def test_output_that_is_no_system_is_refused(lying: Lying, said: bytes, why: str) -> None:
    with pytest.raises(Blocked, match=f"the evaluation's result was refused: {why}"):
        await lying.evaluate(said)


async def test_more_than_was_announced_is_refused(lying: Lying) -> None:
    drv = await store("nix-instantiate", "--expr", 'derivation { name = "t5"; system = "s"; builder = "b"; }')
    out = await store("nix-store", "--query", "--outputs", drv)
    more = export((drv, content_of(drv), ())) + b"more"
    with pytest.raises(Blocked, match="the evaluation's result was refused: there is more than was announced"):
        await lying.evaluate(output(drv, out, (drv,), more))


# The probe at start. Each hole is cut into a box that otherwise holds.


async def test_the_box_holds_here(nix: SandboxedNix) -> None:
    await nix.probe()


HOLES = {
    BoxKind.NAMESPACES: [
        pytest.param("--share-net", "reach a port", id="network"),
        pytest.param("--ro-bind {scratch} {scratch}", "read a file of the operator's", id="files"),
        pytest.param("--setenv LEAK {scratch}", "shows the operator's environment: LEAK", id="environment"),
        pytest.param("--no-such-option", "evaluation is not possible", id="no box at all"),
    ],
    BoxKind.LANDLOCK: [
        pytest.param("--landlock-rule path-beneath:read-file:{scratch}", "read a file of the operator's", id="files"),
        pytest.param("--landlock-rule path-beneath:read-dir:{scratch}", "list a folder of the operator's", id="names"),
        pytest.param(
            "--landlock-rule path-beneath:read-file:/proc", "read the operator's command line", id="processes"
        ),
        pytest.param("--no-such-option", "evaluation is not possible", id="no box at all"),
    ],
}


@pytest.mark.parametrize(("option", "complaint"), HOLES[BOX])
async def test_the_probe_finds_a_hole_in_the_box(
    monkeypatch: pytest.MonkeyPatch, scratch: Path, option: str, complaint: str
) -> None:
    hole = option.format(scratch=scratch).split()
    monkeypatch.setattr(namespaces, "SHUT", (*hole, *namespaces.SHUT))  # nothing can be mounted after it
    rules = landlock.Landlock._outer

    def holed(box: landlock.Landlock, place: landlock._Place) -> list[str]:
        argv = rules(box, place)
        at = argv.index("--seccomp-filter")
        return [*argv[:at], *hole, *argv[at:]]

    monkeypatch.setattr(landlock.Landlock, "_outer", holed)
    with pytest.raises(SandboxUnsafe, match=complaint):
        await probe(evaluator_in(scratch, EvaluationLimits()), scratch)


FILTER_HOLES = [
    pytest.param(["socket", "connect"], "reach a ", id="sockets"),
    pytest.param(["kill"], r"signal the operator \(kill\)", id="signals"),
    pytest.param(["pidfd_open", "pidfd_send_signal"], r"signal the operator \(pidfd", id="signals by descriptor"),
    pytest.param(["unshare"], "make namespaces", id="namespaces"),
    pytest.param(["setsid"], "leave its session", id="sessions"),
    pytest.param(["io_uring_setup"], "make an io_uring", id="io_uring"),
]


@pytest.mark.parametrize(("calls", "complaint"), FILTER_HOLES if BOX is BoxKind.LANDLOCK else [([], None)])
async def test_the_probe_finds_a_hole_in_the_filter(
    monkeypatch: pytest.MonkeyPatch, scratch: Path, calls: list[str], complaint: str | None
) -> None:
    """Which only one of the boxes has."""
    if complaint is None:
        return
    numbers = {"socket": 41, "connect": 42, "kill": 62, "unshare": 272, "setsid": 112}
    new = {"pidfd_open": 434, "pidfd_send_signal": 424, "io_uring_setup": 425}
    for call in calls:
        number = (numbers | new)[call]
        monkeypatch.setitem(seccomp._ALLOWED, call, (number, new.get(call)))
    with pytest.raises(SandboxUnsafe, match=complaint):
        await probe(evaluator_in(scratch, EvaluationLimits()), scratch)


@pytest.mark.parametrize(
    ("line", "instead", "complaint"),
    [
        pytest.param("pure-eval = true\n# Only", "# Only", None, id="pure or restricted: one of them suffices"),
        pytest.param("-eval = true", "-eval = false", "an evaluation reads the environment", id="neither"),
        pytest.param(
            "allow-import-from-derivation = false\nmax-jobs = 0",
            "allow-import-from-derivation = true\nmax-jobs = 1\nsandbox = false",
            # Nix cannot start one in the other box, whatever its settings say.
            "an evaluation runs builders" if BOX is BoxKind.NAMESPACES else None,
            id="import from derivation",
        ),
    ],
)
async def test_the_probe_finds_a_hole_in_nix_settings(
    monkeypatch: pytest.MonkeyPatch, scratch: Path, line: str, instead: str, complaint: str | None
) -> None:
    assert line in namespaces.EVALUATOR_CONF
    for module in (landlock, namespaces):
        monkeypatch.setattr(module, "EVALUATOR_CONF", namespaces.EVALUATOR_CONF.replace(line, instead))
    evaluator = evaluator_in(scratch, EvaluationLimits())
    if complaint is None:
        await probe(evaluator, scratch)
        return
    with pytest.raises(SandboxUnsafe, match=complaint):
        await probe(evaluator, scratch)
