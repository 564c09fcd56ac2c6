"""Derivations that come out of an evaluation: what they are built from is what the evaluation was given, and no more.

A `.drv` is a text like any other, so a module can write one by hand (`builtins.toFile`). Nix keeps its references as
they were stated, and later shows the builder what its text names: another tenant's path, if nobody compares the two.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.nix_bench import request, store
from nixops_operator.adapters.nix.boxes import landlock, namespaces
from nixops_operator.adapters.nix.limits import FIRST_TO_GO
from nixops_operator.adapters.nix.sandboxed_nix import SandboxedNix
from nixops_operator.api.reasons import Reason
from nixops_operator.errors import Blocked
from nixops_operator.facts.nix import Source
from nixops_operator.nix.expression import nix_string
from nixops_operator.nix.store_paths import output_path

SECRET = "another tenant's secret"


def by_hand(name: str, script: str, sources: tuple[str, ...] = (), **variables: str) -> tuple[str, str]:
    """The text of a derivation that runs this script, and the path of its output."""

    def text(out: str) -> str:
        env = {
            "name": name,
            "out": out,
            "builder": "/bin/sh",
            "system": "x86_64-linux",
            "PATH": "/usr/bin",
            **variables,
        }
        pairs = ",".join(f"({quoted(key)},{quoted(env[key])})" for key in sorted(env))
        listed = ",".join(map(quoted, sorted(sources)))
        arguments = f'["-c",{quoted(script)}]'
        return f'Derive([("out",{quoted(out)},"","")],[],[{listed}],"x86_64-linux","/bin/sh",{arguments},[{pairs}])'

    out = output_path("out", text("").encode(), name)
    return text(out), out


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def needing(name: str, derivation: tuple[str, str]) -> str:
    """A module whose system needs the output of a derivation written by hand."""
    text, out = derivation
    return f"""{{ ... }}: let
      derivation = builtins.unsafeDiscardStringContext (builtins.toFile "{name}.drv" {nix_string(text)});
    in {{
      environment.etc.{name}.source =
        builtins.appendContext {nix_string(out)} {{ ${{derivation}} = {{ outputs = [ "out" ]; }}; }};
    }}"""


def content_of(path: str) -> str | None:
    return Path(path).read_text() if Path(path).exists() else None


async def refusal(nix: SandboxedNix, nixpkgs: Source, module: str) -> str:
    with pytest.raises(Blocked) as failed:
        await nix.evaluate(request(nixpkgs, module))
    assert failed.value.reason is Reason.EVALUATION_FAILED
    return failed.value.message


async def test_a_derivation_written_by_hand_is_taken_like_any_other(nix: SandboxedNix, nixpkgs: Source) -> None:
    """The control: the form is right, and what it is built from is stated."""
    derivation = by_hand("harmless", "echo harmless >$out")
    evaluation = await nix.evaluate(request(nixpkgs, needing("harmless", derivation)))
    await nix.build(evaluation.drv_path, lambda _: None)
    assert content_of(derivation[1]) == "harmless\n"


async def test_a_derivation_that_names_more_than_it_refers_to_is_refused(nix: SandboxedNix, nixpkgs: Source) -> None:
    other = await nix.add_tree({"secret": SECRET.encode()})
    derivation = by_hand("evil", f"cat {other.store_path}/secret >$out", (other.store_path,))
    message = await refusal(nix, nixpkgs, needing("evil", derivation))
    assert message == (
        "the derivation evil was refused: it is built from source, which is not among its references "
        "(was it written by hand with builtins.toFile?)"
    )
    assert content_of(derivation[1]) is None


async def test_so_is_one_that_needs_another_by_hand(nix: SandboxedNix, nixpkgs: Source) -> None:
    """Deeper down it is found as well: every derivation of the closure is judged."""
    other = await nix.add_tree({"secret": SECRET.encode()})
    text, out = by_hand("deeper", f"cat {other.store_path}/secret >$out", (other.store_path,))
    module = f"""{{ ... }}: let
      hidden = builtins.unsafeDiscardStringContext (builtins.toFile "deeper.drv" {nix_string(text)});
      reader = derivation {{
        name = "reader";
        system = "x86_64-linux";
        builder = "/bin/sh";
        args = [ "-c" "read x <$source; echo $x >$out" ];
        source = builtins.appendContext {nix_string(out)} {{ ${{hidden}} = {{ outputs = [ "out" ]; }}; }};
      }};
    in {{ environment.etc.reader.source = reader; }}"""
    assert (await refusal(nix, nixpkgs, module)).startswith(
        "the derivation deeper was refused: it is built from source"
    )


@pytest.mark.parametrize("attribute", ["__noChroot = true;", '__impureHostDeps = "/etc";'])
async def test_a_derivation_that_asks_for_a_hole_in_its_sandbox_is_refused(
    nix: SandboxedNix, nixpkgs: Source, attribute: str
) -> None:
    module = f"""{{ ... }}: {{
      environment.etc.hole.source = derivation {{
        name = "hole";
        system = "x86_64-linux";
        builder = "/bin/sh";
        {attribute}
      }};
    }}"""
    name = attribute.partition(" ")[0]
    assert await refusal(nix, nixpkgs, module) == (
        f"the derivation hole was refused: it asks for a hole in its sandbox ({name})"
    )


async def test_an_output_that_is_another_s_path_is_refused(nix: SandboxedNix, nixpkgs: Source) -> None:
    """Nix itself computes where outputs go, and does so when a derivation is stored."""
    other = await nix.add_tree({"secret": SECRET.encode()})
    text, out = by_hand("usurper", "true")
    module = needing("usurper", (text.replace(out, other.store_path), other.store_path))
    refused = await refusal(nix, nixpkgs, module)
    assert "usurper" in refused
    assert "has incorrect output 'source'" in refused


async def test_a_system_of_more_derivations_than_fit_a_command_line(
    nix: SandboxedNix, nixpkgs: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel allows a quarter of the stack's limit for arguments: a small stack makes a few files many."""
    for module_of_box in (landlock, namespaces):
        cramped = ("prlimit", f"--stack={512 * 1024}", *FIRST_TO_GO)
        monkeypatch.setattr(module_of_box, "FIRST_TO_GO", cramped)
    module = """{ ... }: {
      environment.etc.many.source = derivation {
        name = "many";
        system = "x86_64-linux";
        builder = "/bin/sh";
        files = map (n: builtins.toFile "one-of-which-there-are-many-${toString n}" "") (builtins.genList (n: n) 2000);
      };
    }"""
    evaluation = await nix.evaluate(request(nixpkgs, module))
    closure = (await store("nix-store", "--query", "--requisites", evaluation.drv_path)).splitlines()
    assert len([path for path in closure if "-of-which-there-are-many-" in path]) == 2000
