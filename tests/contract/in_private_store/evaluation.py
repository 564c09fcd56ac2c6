"""Evaluation: the model example, the same answer each time, and errors in the user's own words."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from contract.nix_bench import MODEL, request, store
from nixops_operator.adapters.nix.boxes.box import EVALUATOR_CONF
from nixops_operator.adapters.nix.programs import trusted_environment
from nixops_operator.adapters.nix.sandboxed_nix import SandboxedNix
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked, InvalidSpec
from nixops_operator.facts.nix import Facts, Module, Source
from nixops_operator.nix.derivations import derivation_of
from nixops_operator.nix.expression import expression
from nixops_operator.nix.store_paths import is_store_path


async def test_the_model_example_becomes_a_system(nix: SandboxedNix, nixpkgs: Source) -> None:
    evaluation = await nix.evaluate(request(nixpkgs, MODEL))
    assert is_store_path(evaluation.toplevel)
    assert "-nixos-system-webserver-" in evaluation.toplevel
    assert evaluation.warnings == ()


async def test_the_derivations_are_in_the_operator_s_store(nix: SandboxedNix, nixpkgs: Source) -> None:
    evaluation = await nix.evaluate(request(nixpkgs, MODEL))
    closure = (await store("nix-store", "--query", "--requisites", evaluation.drv_path)).splitlines()
    assert len(closure) > 10
    assert await store("nix-store", "--verify-path", *closure) == ""
    assert await store("nix-store", "--query", "--outputs", evaluation.drv_path) == evaluation.toplevel


async def test_equal_requests_have_equal_systems(nix: SandboxedNix, nixpkgs: Source) -> None:
    assert await nix.evaluate(request(nixpkgs, MODEL)) == await nix.evaluate(request(nixpkgs, MODEL))


async def test_an_edited_module_makes_another_system(nix: SandboxedNix, nixpkgs: Source) -> None:
    edited = MODEL.replace("[ 80 ]", "[ 80 443 ]")
    one, other = await nix.evaluate(request(nixpkgs, MODEL)), await nix.evaluate(request(nixpkgs, edited))
    assert one.toplevel != other.toplevel


async def test_a_source_is_asked_about_once(nix: SandboxedNix, nixpkgs: Source, scratch: Path) -> None:
    """Not at each look at a file in it, as pure evaluation does where nobody has asked."""
    source = await nix.add_tree({"machine.nix": MODEL.encode()})
    wanted = replace(request(nixpkgs, source=source), modules=(Module("machine.nix", path="machine.nix"),))
    conf = EVALUATOR_CONF + "use-sqlite-wal = true\n"  # as this store has it
    process = await asyncio.create_subprocess_exec(
        *("nix-instantiate", "--eval", "--strict", "--json", "-"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**trusted_environment(scratch), "NIX_CONFIG": conf, "NIX_DEBUG_SQLITE_TRACES": "1"},
    )
    value, said = await process.communicate(expression(wanted, None, {}).encode())
    assert b"-nixos-system-webserver-" in value
    questions = [line for line in said.decode().splitlines() if "SQL<[" in line and nixpkgs.store_path in line]
    if "(Nix) 2.8." in await store("nix-instantiate", "--version"):
        assert not said, "it does not tell what it asks"
    else:
        assert 1 <= len(questions) < 10


def systems_of(derivations: Iterable[str]) -> set[bytes]:
    return {derivation_of(Path(path).read_bytes()).system for path in derivations}


async def test_a_machine_of_another_architecture_has_another_system(nix: SandboxedNix, nixpkgs: Source) -> None:
    """It is evaluated here; every builder of its closure is for a machine such as itself."""
    here = await nix.evaluate(request(nixpkgs, MODEL))
    arm = await nix.evaluate(replace(request(nixpkgs, MODEL), system="aarch64-linux"))
    assert arm.toplevel != here.toplevel
    closure = (await store("nix-store", "--query", "--requisites", arm.drv_path)).splitlines()
    assert systems_of(path for path in closure if path.endswith(".drv")) == {b"aarch64-linux"}
    with pytest.raises(Blocked, match="aarch64-linux"):
        await nix.build(arm.drv_path, lambda _: None)


async def test_modules_come_from_the_source_by_their_path(nix: SandboxedNix, nixpkgs: Source) -> None:
    source = await nix.add_tree(
        {
            "configuration.nix": b"{ imports = [ ./parts/name.nix ]; }",
            "parts/name.nix": b'{ networking.hostName = "x1"; }',
        }
    )
    wanted = replace(request(nixpkgs, source=source), modules=(Module("configuration.nix", path="configuration.nix"),))
    assert "-nixos-system-x1-" in (await nix.evaluate(wanted)).toplevel


async def test_modules_receive_what_the_operator_gives(nix: SandboxedNix, nixpkgs: Source) -> None:
    seen = "${name} ${uuid} ${deploymentName} ${nodes.webserver.config.networking.hostName} ${site}"
    module = "{ name, uuid, deploymentName, nodes, site, resources, ... }: { assertions = [ { assertion = false; "
    module += f'message = "{seen}"; }} ]; }}'
    alone = Facts({"nodes": '["webserver"]'})
    with pytest.raises(Blocked) as failed:
        await nix.evaluate(replace(request(nixpkgs, module), arguments={"site": 'a$b"c'}, facts=alone))
    assert failed.value.message == (
        'Failed assertions: webserver 11111111-2222-3333-4444-555555555555 example webserver a$b"c'
    )


async def test_every_machine_gets_the_guest_module(nix: SandboxedNix, nixpkgs: Source) -> None:
    module = """{ config, lib, ... }: { assertions = [ { assertion = false; message = lib.concatStringsSep " " ([
      config.system.stateVersion config.networking.hostName
      (toString (lib.any (package: lib.hasInfix "inotify-tools" (toString package)) config.environment.systemPackages))
    ] ++ config.nix.settings.trusted-public-keys); } ]; }"""
    with pytest.raises(Blocked) as failed:
        await nix.evaluate(request(nixpkgs, module, public_key="nixops-1:abc="))
    words = failed.value.message.removeprefix("Failed assertions: ").split()
    assert words[:3] == ["25.11", "webserver", "1"]
    assert "nixops-1:abc=" in words[3:]


async def test_a_system_that_nothing_could_switch_to_is_refused(nix: SandboxedNix, nixpkgs: Source) -> None:
    ng = "{ lib, ... }: { options.system.switch.enableNg = lib.mkOption { type = lib.types.bool; %s }; }"
    gone = ng % 'apply = _: throw "it has been removed"; default = false;'
    for others in ((), (ng % "default = false;",), (gone,)):
        with pytest.raises(Blocked, match=r"^Failed assertions: system\.switch\.enable is false: nothing could make"):
            await nix.evaluate(request(nixpkgs, "{ system.switch.enable = false; }", *others))
    await nix.evaluate(request(nixpkgs, "{ system.switch.enable = false; }", ng % "default = true;"))
    await nix.evaluate(request(nixpkgs, "{ }", gone))


async def test_options_of_nixops_are_let_be_and_warned_of_once(nix: SandboxedNix, nixpkgs: Source) -> None:
    module = '{ deployment.targetHost = "192.0.2.1"; deployment.ec2.region = "eu-west-1"; }'
    evaluation = await nix.evaluate(request(nixpkgs, module))
    assert evaluation.warnings == (
        "deployment.{ec2, targetHost} of NixOps has no effect: the NixMachine's spec decides",
    )


async def test_warnings_are_few_and_short_and_hold_no_secret(nix: SandboxedNix, nixpkgs: Source) -> None:
    key = "-----BEGIN PRIVATE KEY-----\\nAAAA\\n-----END PRIVATE KEY-----"
    said = f'"{key} \\t ${{builtins.fromJSON "\\"\\\\u001b[31m\\""}}red"'
    many = "builtins.genList (number: toString number) 1000"
    text = f"{{ lib, ... }}: {{ warnings = [ {said} (lib.concatStrings ({many})) ] ++ {many}; }}"
    warnings = (await nix.evaluate(request(nixpkgs, text))).warnings
    assert warnings[0] == "[redacted] red"
    assert (len(warnings[1]), len(warnings)) == (400, 32)


@pytest.mark.parametrize("option", ["text", "keyFile", "keyCommand"])
async def test_the_content_of_a_key_is_refused_in_nix(nix: SandboxedNix, nixpkgs: Source, option: str) -> None:
    with pytest.raises(Blocked, match=r"deployment\.keys\.db gives the content of a key in Nix"):
        await nix.evaluate(request(nixpkgs, f'{{ deployment.keys.db.{option} = "s3cret"; }}'))


@pytest.mark.parametrize(
    ("module", "message"),
    [
        pytest.param("{\n  x = = 1;\n}", "modules[0]:2:7: syntax error, unexpected '='", id="syntax"),
        pytest.param("{ networking.hostName = nam; }", "modules[0]:1:25: undefined variable 'nam'", id="variable"),
        pytest.param(
            "{ services.htpd.enable = true; }",
            "modules[0]:1: The option `services.htpd' does not exist. "
            "Did you mean `services.httpd' or `services.openssh'?",
            id="unknown option",
        ),
        pytest.param(
            '{ services.httpd.enable = "yes"; }',
            "modules[0]:1: A definition for option `services.httpd.enable' is not of type `boolean'.",
            id="type",
        ),
        pytest.param(
            '{ assertions = [ { assertion = false; message = "one"; } { assertion = false; message = "two"; } ]; }',
            "Failed assertions: one; two",
            id="assertions",
        ),
        pytest.param(
            '{ config, ... }: { networking.hostName = "x" + config.networking.hostName; }',
            "modules[0]:1:48: infinite recursion encountered while evaluating the option `networking.hostName'",
            id="recursion",
        ),
        pytest.param("{ colour, ... }: { networking.hostName = colour; }", None, id="unknown argument"),
        pytest.param(
            '{ networking.hostName = builtins.readFile (builtins.fetchTarball "https://example.org/x.tar.gz"); }',
            "modules[0]:1:25: access to URI 'https://example.org/x.tar.gz' is forbidden in restricted mode: "
            "an evaluation has no network: name a tree of modules in spec.configuration.source.archive (url, hash), "
            "and put single files into the source",
            id="the network",
        ),
    ],
)
async def test_an_error_names_the_user_s_place(
    nix: SandboxedNix, nixpkgs: Source, module: str, message: str | None
) -> None:
    with pytest.raises(Blocked) as failed:
        await nix.evaluate(request(nixpkgs, module))
    assert failed.value.reason is Reason.EVALUATION_FAILED
    assert without_column(failed.value.message) == without_column(
        message or "modules[0]: there is no module argument `colour'"
    )


def without_column(message: str) -> str:
    """Of a call some versions of Nix name the function's place, others the argument's, and some none; what each says is
    in `unit/test_nix_versions.py`."""
    return re.sub(r"^(\S+?)(?::\d+)*: ", r"\1: ", message)


@pytest.mark.parametrize(
    "length",
    [
        pytest.param(120_000, id="120 kB, which Nix says in one line that is kept whole"),
        pytest.param(400_000, id="400 kB, of which only the beginning is kept"),
    ],
)
async def test_an_error_of_any_length_becomes_one_short_message(
    nix: SandboxedNix, nixpkgs: Source, length: int
) -> None:
    blanks = f'builtins.concatStringsSep "" (builtins.genList (_: " ") {length})'
    with pytest.raises(Blocked) as failed:
        await nix.evaluate(request(nixpkgs, f'{{ networking.hostName = throw ("first" + {blanks} + "last"); }}'))
    assert "first …" in failed.value.message


async def test_a_byte_order_mark_before_a_module_does_no_harm(nix: SandboxedNix, nixpkgs: Source) -> None:
    module = '{ networking.hostName = "marked"; }'
    assert await nix.evaluate(request(nixpkgs, f"\ufeff{module}")) == await nix.evaluate(request(nixpkgs, module))


async def test_a_byte_order_mark_before_a_file_is_told(nix: SandboxedNix, nixpkgs: Source) -> None:
    source = await nix.add_tree({"web.nix": b"\xef\xbb\xbf{ }"})
    wanted = replace(request(nixpkgs, source=source), modules=(Module("web.nix", path="web.nix"),))
    with pytest.raises(
        Blocked, match=r"^web\.nix:1:1: .*perhaps a byte-order mark; save the file as UTF-8 without one"
    ):
        await nix.evaluate(wanted)


async def test_an_error_in_a_file_of_the_source_names_its_path(nix: SandboxedNix, nixpkgs: Source) -> None:
    source = await nix.add_tree({"sub/web.nix": b"{ a = ; }"})
    wanted = replace(request(nixpkgs, source=source), modules=(Module("sub/web.nix", path="sub/web.nix"),))
    with pytest.raises(Blocked, match=r"^sub/web\.nix:1:7: syntax error, unexpected ';'"):
        await nix.evaluate(wanted)


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "a//b", "./a", "", "a/"])
async def test_a_source_keeps_to_itself(nix: SandboxedNix, name: str) -> None:
    with pytest.raises(InvalidSpec, match=r"^spec\.configuration\.source: "):
        await nix.add_tree({name: b""})


async def test_a_source_has_a_bounded_number_of_files(nix: SandboxedNix) -> None:
    with pytest.raises(InvalidSpec, match="more than 50000 files"):
        await nix.add_tree({str(number): b"" for number in range(50_001)})


async def test_a_tree_and_a_folder_of_equal_content_are_one_source(nix: SandboxedNix, scratch: Path) -> None:
    folder = scratch / "tree"
    (folder / "b").mkdir(parents=True)
    (folder / "a").write_bytes(b"1")
    (folder / "b" / "c").write_bytes(b"2")
    assert await nix.add_path(folder) == await nix.add_tree({"a": b"1", "b/c": b"2"})


async def test_a_missing_folder_is_named_with_its_setting(nix: SandboxedNix, scratch: Path) -> None:
    with pytest.raises(Blocked, match=r"there is no folder .*/nowhere \(setting nix\.nixpkgs\.path\)") as failed:
        await nix.add_path(scratch / "nowhere")
    assert failed.value.reason is Reason.SOURCE_NOT_FOUND


async def test_a_source_that_is_not_in_the_store_is_reported(nix: SandboxedNix, nixpkgs: Source) -> None:
    lost = Source("/nix/store/66lcyzm77nq9j5ayd861lbj0shg3mqvv-source", nixpkgs.nar_hash)
    with pytest.raises(Blocked) as failed:
        await nix.evaluate(request(nixpkgs, "{ }", source=lost))
    assert failed.value.reason is Reason.SOURCE_NOT_FOUND
