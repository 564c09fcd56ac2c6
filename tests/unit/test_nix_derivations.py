"""A derivation is read as Nix writes it, byte by byte, and builds from nothing that its evaluation was not given."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from nixops_operator.nix.derivations import (
    TEXT_LIMIT,
    Derivation,
    NotADerivationError,
    Output,
    derivation_of,
    objection,
)
from unit.counting import lines_run

BASH = "/nix/store/66lcyzm77nq9j5ayd861lbj0shg3mqvv-bash-5.2"
BASH_DRV = "/nix/store/wwdvx1hs51c3jj8vzfaxgzhlixjpwsrv-bash-5.2.drv"
SCRIPT = "/nix/store/0j7px61l5wlr3s7iy6wlcfy5aga0pzi1-build.sh"
OUT = "/nix/store/kahncmy9p0sabclm1dnkgyg0fpisajzc-web"
DRV = "/nix/store/a15nfi42zfs2g93aplfdada4ca25x6h3-web.drv"
ALIEN = "/nix/store/cis058pb1jb7k89f7d41lqbwh6n3ji6d-source"

# As `nix-instantiate` of Nix 2.8 writes it.
TEXT = (
    f'Derive([("out","{OUT}","","")],[("{BASH_DRV}",["out"])],["{SCRIPT}"],"x86_64-linux","{BASH}/bin/sh",["-e",'
    f'"{SCRIPT}"],[("builder","{BASH}/bin/sh"),("name","web"),("out","{OUT}"),("text","a \\"b\\"\\n\\tc\\\\")])'
).encode()
WEB = Derivation(
    outputs={"out": Output(OUT, "", "")},
    inputs={BASH_DRV: ("out",)},
    sources=frozenset({SCRIPT}),
    system=b"x86_64-linux",
    builder=f"{BASH}/bin/sh".encode(),
    arguments=(b"-e", SCRIPT.encode()),
    environment={
        b"builder": f"{BASH}/bin/sh".encode(),
        b"name": b"web",
        b"out": OUT.encode(),
        b"text": b'a "b"\n\tc\\',
    },
)
REFERENCES = frozenset({BASH_DRV, SCRIPT})


def written(derivation: Derivation) -> bytes:
    """The text that Nix writes for it."""

    def quoted(value: bytes | str) -> bytes:
        text = value.encode() if isinstance(value, str) else value
        for plain, escaped in ((b"\\", b"\\\\"), (b'"', b'\\"'), (b"\n", b"\\n"), (b"\r", b"\\r"), (b"\t", b"\\t")):
            text = text.replace(plain, escaped)
        return b'"' + text + b'"'

    def row(*values: bytes) -> bytes:
        return b"(" + b",".join(values) + b")"

    def rows(values: list[bytes]) -> bytes:
        return b"[" + b",".join(values) + b"]"

    parts = (
        rows([row(*map(quoted, (n, o.path, o.algorithm, o.digest))) for n, o in sorted(derivation.outputs.items())]),
        rows(
            [row(quoted(p), rows([quoted(name) for name in names])) for p, names in sorted(derivation.inputs.items())]
        ),
        rows([quoted(path) for path in sorted(derivation.sources)]),
        quoted(derivation.system),
        quoted(derivation.builder),
        rows([quoted(argument) for argument in derivation.arguments]),
        rows([row(quoted(name), quoted(value)) for name, value in sorted(derivation.environment.items())]),
    )
    return b"Derive(" + b",".join(parts) + b")"


def test_a_derivation_is_read():
    assert derivation_of(TEXT) == WEB
    assert written(WEB) == TEXT


store_paths = some.builds(
    lambda digest, name: f"/nix/store/{digest}-{name}",
    some.text("0123456789abcdfghijklmnpqrsvwxyz", min_size=32, max_size=32),
    some.text("abcXYZ019+-._?=", min_size=1, max_size=12),
)
names = some.text("abcdev_", min_size=1, max_size=5)
derivations = some.builds(
    Derivation,
    outputs=some.dictionaries(names, some.builds(Output, store_paths, names | some.just(""), names), max_size=3),
    inputs=some.dictionaries(
        store_paths.map("{}.drv".format), some.sets(names, max_size=3).map(sorted).map(tuple), max_size=3
    ),
    sources=some.frozensets(store_paths, max_size=3),
    system=some.binary(max_size=5),
    builder=some.binary(max_size=20),
    arguments=some.lists(some.binary(max_size=9), max_size=3).map(tuple),
    environment=some.dictionaries(some.binary(max_size=5), some.binary(max_size=20), max_size=4),
)


@given(derivations)
def test_whatever_nix_may_write_is_read_back(derivation):
    assert derivation_of(written(derivation)) == derivation


@settings(max_examples=200)
@given(derivations, some.data())
def test_a_text_that_is_taken_is_the_one_that_nix_would_write(derivation, data):
    """So there is no second reading of it. Tried on texts that are a few bytes away from a derivation."""
    text = bytearray(written(derivation))
    for _ in range(data.draw(some.integers(1, 4))):
        at = data.draw(some.integers(0, len(text)))
        taken = data.draw(some.integers(0, 3))
        text[at : at + taken] = data.draw(
            some.sampled_from([b"", b'"', b"\\", b",", b"(", b")", b"[", b"]", b"\n", b'\\"', b"a", b'("a","b")'])
        )
    try:
        read = derivation_of(bytes(text))
    except NotADerivationError:
        return
    assert written(read) == bytes(text)


@given(some.binary(max_size=200))
def test_noise_is_no_derivation(noise):
    with pytest.raises(NotADerivationError):
        derivation_of(b"Derive(" + noise)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param(b"", r"no Derive\( at byte 0", id="nothing"),
        pytest.param(TEXT + b" ", "more after its end", id="more behind it"),
        pytest.param(TEXT[:-1], r"no \) at byte", id="breaks off"),
        pytest.param(b"DrvWithVersion" + TEXT[6:], r"no Derive\(", id="another form"),
        pytest.param(TEXT.replace(b"a \\", b"\\a \\"), "a string that", id="an escape that Nix does not write"),
        pytest.param(TEXT.replace(b"\\n", b"\n"), "a string that", id="a bare line feed"),
        pytest.param(TEXT.replace(b'["-e",', b'["-e" ,'), "no ] at byte", id="a blank"),
        pytest.param(
            TEXT.replace(b'("name","web"),', b'("name","web"),("name","web"),'), "out of order", id="a name twice"
        ),
        pytest.param(TEXT.replace(b'("name"', b'("zame"'), "out of order", id="names out of order"),
        pytest.param(TEXT.replace(f'["{SCRIPT}"]'.encode(), b'["/etc/passwd"]'), "no store path", id="a file as input"),
        pytest.param(
            TEXT.replace(f'["{SCRIPT}"]'.encode(), f'["{SCRIPT}/x"]'.encode()), "no store path", id="a part of a path"
        ),
        pytest.param(TEXT.replace(b"5.2.drv", b"5.2.dry"), "an input that is no derivation", id="a path for a .drv"),
        pytest.param(b"Derive(" + bytes(TEXT_LIMIT), "more than 16 MiB", id="too large"),
    ],
)
def test_what_nix_would_not_have_written_is_refused(text, why):
    with pytest.raises(NotADerivationError, match=why):
        derivation_of(text)


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(b"\\n", id="escapes"),
        pytest.param(b"\\", id="backslashes"),
        pytest.param(b'","', id="strings"),
        pytest.param(b"[", id="brackets"),
        pytest.param(b"Derive(", id="beginnings"),
    ],
)
def test_sixteen_times_the_text_is_at_most_sixteen_times_the_work(part):
    def work(times: int) -> int:
        text = TEXT.replace(b'"-e"', b'"' + part * times + b'"')

        def read() -> None:
            with contextlib.suppress(NotADerivationError):
                derivation_of(text)

        return lines_run(read)

    assert work(16 * 200) <= 16 * work(200)


FIXED = replace(WEB, outputs={"out": Output(OUT, "r:sha256", "0" * 64)})


@pytest.mark.parametrize(
    ("derivation", "references", "why"),
    [
        pytest.param(WEB, REFERENCES, None, id="as Nix makes one"),
        pytest.param(FIXED, REFERENCES, None, id="a fixed output"),
        pytest.param(replace(WEB, builder=b"builtin:fetchurl"), REFERENCES, None, id="one of Nix' own builders"),
        pytest.param(
            replace(WEB, environment={b"x": f"{ALIEN}/secret".encode()}), REFERENCES, None, id="a path as a mere string"
        ),
        pytest.param(
            replace(WEB, sources=frozenset({SCRIPT, ALIEN})),
            REFERENCES,
            "it is built from source, which is not among its references (was it written by hand with builtins.toFile?)",
            id="another tenant's path, kept from the references",
        ),
        pytest.param(
            replace(WEB, inputs={BASH_DRV: ("out",), f"{ALIEN}.drv": ("out",)}),
            REFERENCES,
            "it is built from source.drv, which is not among its references "
            "(was it written by hand with builtins.toFile?)",
            id="another tenant's derivation, kept from the references",
        ),
        pytest.param(
            replace(WEB, sources=frozenset({SCRIPT, ALIEN})),
            REFERENCES | {ALIEN},
            "it is built from source, which this evaluation was not given",
            id="another tenant's path, among the references",
        ),
        pytest.param(
            WEB,
            REFERENCES | {ALIEN},
            "it refers to source, which is not among its inputs",
            id="a reference that is no input",
        ),
        pytest.param(
            replace(WEB, builder=b"builtin:exec"), REFERENCES, "its builder is builtin:exec", id="an unknown builder"
        ),
        pytest.param(replace(WEB, outputs={}), REFERENCES, "it has no output", id="no output"),
        pytest.param(
            replace(WEB, outputs={"out": Output("", "r:sha256", "")}),
            REFERENCES,
            "its output out has no fixed path",
            id="an output whose path is known after the build",
        ),
        pytest.param(
            replace(WEB, outputs={"out": Output(OUT, "r:sha256", "")}),
            REFERENCES,
            "its output out has half a hash",
            id="an algorithm without a digest",
        ),
        pytest.param(
            replace(FIXED, outputs={**FIXED.outputs, "dev": Output(f"{OUT}-dev", "", "")}),
            REFERENCES,
            "it has a fixed output beside others",
            id="fixed and not",
        ),
        *(
            pytest.param(
                replace(WEB, environment={name.encode(): b"1"}),
                REFERENCES,
                f"it asks for a hole in its sandbox ({name})",
                id=f"{name} as a variable",
            )
            for name in ("__noChroot", "__impureHostDeps", "__sandboxProfile")
        ),
        pytest.param(
            replace(WEB, environment={b"__json": json.dumps({"__impureHostDeps": ["/etc"]}).encode()}),
            REFERENCES,
            "it asks for a hole in its sandbox (__impureHostDeps)",
            id="among structured attributes",
        ),
        pytest.param(
            replace(WEB, environment={b"__json": b"[" * 100_000}),
            REFERENCES,
            "its structured attributes are not JSON",
            id="structured attributes that nobody can read",
        ),
        pytest.param(
            replace(WEB, environment={b"__noChroot": b"", b"__impureHostDeps": b""}),
            REFERENCES,
            None,
            id="a hole that is not asked for",
        ),
    ],
)
def test_a_derivation_builds_from_what_its_evaluation_was_given(derivation, references, why):
    assert objection(DRV, derivation, references, {BASH_DRV, SCRIPT}) == why


def test_no_output_can_be_taken_for_a_derivation():
    assert objection(f"{DRV}.drv", WEB, REFERENCES, REFERENCES) == "its output would be taken for a derivation"
