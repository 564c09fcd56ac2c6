"""What a person is told of a build on a machine, from the lines that its Nix writes. The lines are as Nix 2.8.0, 2.26.3
and 2.34.8 write them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nixops_operator.nix.realisation import Realisation

MIB = 1024**2
TO_FETCH = "these 120 paths will be fetched (340.00 MiB download, 1200.50 MiB unpacked):"


def line(action: str, **fields: Any) -> str:
    return f"@nix {json.dumps({'action': action, **fields})}\n"


def msg(text: str, level: int = 3) -> str:
    return line("msg", level=level, msg=text if level else f"error: {text}")


def start(activity: int, kind: int, text: str = "", *fields: Any) -> str:
    return line("start", id=activity, level=3, type=kind, text=text, fields=fields)


def stop(activity: int) -> str:
    return line("stop", id=activity)


def progress(activity: int, done: int, expected: int) -> str:
    return line("result", id=activity, type=105, fields=[done, expected, 1, 0])


def told(*parts: str) -> Realisation:
    realisation = Realisation()
    for part in parts:
        realisation.read(part)
    return realisation


DOWNLOAD = start(7, 101, "downloading 'http://cache/nar/x.nar.xz'") + progress(7, 57 * MIB, 340 * MIB)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        pytest.param("", "", id="nothing yet"),
        pytest.param(msg("these 5 derivations will be built:"), "0 of 5 built", id="only builds"),
        pytest.param(msg("this derivation will be built:"), "0 of 1 built", id="one build"),
        pytest.param(msg(TO_FETCH), "0 of 120 fetched (0 of 340 MiB)", id="sizes of Nix 2.8"),
        pytest.param(
            msg("these 3 paths will be fetched (879.6 KiB download, 1.9 GiB unpacked):"),
            "0 of 3 fetched (0.0 of 0.9 MiB)",
            id="sizes of Nix 2.34",
        ),
        pytest.param(
            msg("this path will be fetched (2.5 GiB download, 4.0 GiB unpacked):") + DOWNLOAD,
            "0 of 1 fetched (0.1 of 2.5 GiB)",
            id="much",
        ),
        pytest.param(
            msg(TO_FETCH) + start(1, 103) + progress(1, 34, 120) + DOWNLOAD,
            "34 of 120 fetched (57 of 340 MiB)",
            id="under way",
        ),
        pytest.param(
            msg(TO_FETCH)
            + DOWNLOAD
            + stop(7)
            + start(8, 101, "downloading 'http://cache/abc.narinfo'")
            + progress(8, MIB, 0),
            "0 of 120 fetched (57 of 340 MiB)",
            id="what ended counts, and what is about the cache does not",
        ),
        pytest.param(
            msg("these 2 derivations will be built:")
            + start(2, 105)
            + stop(2)
            + start(3, 105)
            + stop(3)
            + start(4, 105),
            "2 of 3 built",
            id="more builds than were announced, because the cache had not everything",
        ),
        pytest.param("warning: no JSON\n@nix {\n@nix []\n@nix " + "[" * 99999 + "\n", "", id="no events"),
    ],
)
def test_how_far_it_is(said: str, text: str) -> None:
    assert told(said).text == text


def test_parts_may_end_anywhere() -> None:
    said = msg(TO_FETCH) + start(1, 103) + progress(1, 34, 120)
    assert told(*said).text == told(said).text == "34 of 120 fetched (0 of 340 MiB)"


def test_a_line_without_an_end_is_not_kept() -> None:
    assert told("x" * 2 * MIB, "\n", msg("this derivation will be built:")).text == "0 of 1 built"


def test_what_is_still_to_be_unpacked() -> None:
    realisation = told(msg(TO_FETCH))
    assert realisation.bytes_to_unpack == int(1200.5 * MIB)
    realisation.read(
        start(9, 100) + progress(9, 200 * MIB, 200 * MIB) + stop(9) + start(10, 100) + progress(10, MIB, 2 * MIB)
    )
    assert realisation.bytes_to_unpack == int(999.5 * MIB)


HTTPD = "/nix/store/33333333333333333333333333333drv-httpd.drv"
FAILED = f"builder for '{HTTPD}' failed with exit code 2"


@pytest.mark.parametrize(
    ("said", "message", "is_passing"),
    [
        pytest.param("", "", False, id="nothing was said"),
        pytest.param(
            start(1, 105, "", HTTPD) + line("result", id=1, type=101, fields=["no such header"]) + msg(FAILED, 0),
            "build of httpd failed with exit code 2: no such header",
            False,
            id="a builder failed",
        ),
        pytest.param(
            start(1, 105, "", HTTPD)
            + line("result", id=1, type=101, fields=["curl: (7) Failed to connect to ftp.example.org port 443"])
            + msg(FAILED, 0),
            "build of httpd failed with exit code 2: curl: (7) Failed to connect to ftp.example.org port 443",
            True,
            id="a source could not be fetched",
        ),
        pytest.param(
            msg(f"builder for '{HTTPD}' failed due to signal 9 (Killed)", 0),
            "build of httpd failed due to signal 9 (Killed), perhaps because the machine ran out of memory",
            False,
            id="killed",
        ),
        pytest.param(
            msg("unable to download 'http://cache/nix-cache-info': Couldn't connect to server (7)", 0),
            "unable to download 'http://cache/nix-cache-info': Couldn't connect to server (7)",
            True,
            id="the cache is down",
        ),
        pytest.param(
            msg(
                "some substitutes for the outputs of derivation '/nix/store/33333333333333333333333333333drv-x.drv' "
                "failed (usually happens due to networking issues); try '--fallback' to build derivation from source",
                0,
            ),
            "some substitutes for the outputs of derivation 'x.drv' failed (usually happens due to networking issues); "
            "try '--fallback' to build derivation from source",
            True,
            id="the cache broke off",
        ),
        pytest.param(
            msg("writing to file: No space left on device", 0),
            "writing to file: No space left on device",
            True,
            id="disk",
        ),
        pytest.param(
            msg(
                "warning: the substitute for '/nix/store/x' from 'http://cache' is not signed by any of the keys in "
                "'trusted-public-keys'",
                1,
            )
            + msg(FAILED, 0),
            "no signature that the machine trusts for 1 path of a binary cache, and without: build of httpd failed "
            "with exit code 2",
            True,
            id="a wrong signature, and what came of it",
        ),
    ],
)
def test_why_it_failed(said: str, message: str, is_passing: bool) -> None:
    failure = told(said).failure()
    assert (failure.message, failure.is_passing) == (message, is_passing)


def lost(cache: str = "http://cache", more: str = "") -> str:
    return msg(f"warning: unable to download '{cache}/nix-cache-info': Couldn't connect to server (7){more}", 1)


TO_BUILD = msg("these 2200 derivations will be built:")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        pytest.param(TO_BUILD, None, id="a machine without any cache builds all"),
        pytest.param(lost(more="; retrying in 292 ms") + TO_BUILD, None, id="it may still answer"),
        pytest.param(lost() + msg("these 60 derivations will be built:"), None, id="settings only"),
        pytest.param(lost() + TO_BUILD + msg(TO_FETCH), None, id="another cache has most"),
        pytest.param(
            lost() + TO_BUILD + start(1, 103) + progress(1, 0, 200),
            "the binary cache http://cache does not answer the machine: Couldn't connect to server (7); "
            "2200 derivations would be built in its place",
            id="it would compile the world",
        ),
    ],
)
def test_a_cache_that_does_not_answer_is_waited_for(said: str, why: str | None) -> None:
    assert told(said).should_wait == why


def test_what_failed_without_a_cache_is_tried_again() -> None:
    failure = told(lost(), msg(FAILED, 0)).failure()
    assert failure.message == (
        "the binary cache http://cache did not answer, and without it: build of httpd failed with exit code 2"
    )
    assert failure.is_passing
