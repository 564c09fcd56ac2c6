"""What the process says: one JSON object a line, with the object it is about, and no secret in it."""

from __future__ import annotations

import contextvars
import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nixops_operator import logs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Call it for the lines so far, parsed."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    logs.set_up("INFO")
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    logging.captureWarnings(False)
    root.handlers = before
    root.setLevel(level)


def test_a_line_names_the_object_and_the_pass(said: Any) -> None:
    def in_a_pass() -> None:
        logs.speak_of("NixMachine/shop/web", 7)
        logging.getLogger("nixops_operator.reconcile").warning("first\nsecond", extra={"reason": "Throttled"})

    contextvars.copy_context().run(in_a_pass)

    (line,) = said()
    assert (line["key"], line["pass_id"], line["reason"]) == ("NixMachine/shop/web", 7, "Throttled")
    assert (line["event"], line["level"]) == ("first\nsecond", "warning")


def test_an_error_with_its_trace_is_one_line(said: Any) -> None:
    error = RuntimeError("password = -----BEGIN PRIVATE KEY-----\nMIIE")
    logging.getLogger("foreign").error("it broke", exc_info=error)

    (line,) = said()
    assert "RuntimeError" in line["exception"]
    assert "MIIE" not in line["exception"]


SECRETS = [
    pytest.param("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNz\n-----END OPENSSH PRIVATE KEY-----", id="SSH key"),
    pytest.param("-----BEGIN RSA PRIVATE KEY-----\nb3BlbnNz", id="SSH key that was cut"),
    pytest.param("PuTTY-User-Key-File-3: ssh-ed25519\nPrivate-Lines: 1\nb3BlbnNz\nPrivate-MAC: 00ff", id="PuTTY key"),
    pytest.param("AKIAIOSFODNN7EXAMPLE", id="access key id"),
    pytest.param("aws_secret_access_key = b3BlbnNz", id="secret access key, as in a file"),
    pytest.param('{"SecretAccessKey": "b3BlbnNz"}', id="secret access key, as in an answer"),
    pytest.param("aws_session_token=b3BlbnNz", id="session token, as in a file"),
    pytest.param('"SessionToken": "b3BlbnNz"', id="session token, as in an answer"),
    pytest.param("X-Amz-Security-Token: b3BlbnNz", id="session token, as a request carries it"),
    pytest.param("Authorization: Bearer b3BlbnNz.b3BlbnNz", id="token of a service account"),
    pytest.param("nixops-operator-1:" + "b3BlbnNz" * 10 + "b3Blbn==", id="signing key of Nix"),
]


@pytest.mark.parametrize("secret", SECRETS)
def test_no_secret_is_said(said: Any, secret: str) -> None:
    logging.getLogger("botocore").warning("refused: %s, and so on", secret, extra={"result": secret})

    (line,) = said()
    assert "b3BlbnNz" not in json.dumps(line)
    assert "AKIAIOSFODNN7EXAMPLE" not in json.dumps(line)
    assert "[redacted]" in line["event"]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("public key ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDl6", id="public key"),
        pytest.param("cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=", id="public key of Nix"),
        pytest.param("/nix/store/0c4gqnzkhqnpwwlzxbbdm3iwjp9g1x8j-nixos-system-web", id="store path"),
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert logs.redacted(text) == text


def test_what_has_no_bound_is_cut_before_it_is_searched() -> None:
    """A search of 8 kB ends at once, whatever a tenant wrote; what begins before the cut and ends behind it goes."""
    text = "x" * 8_000 + "-----BEGIN PRIVATE KEY-----" + "b3BlbnNz" * 100_000

    short = logs.redacted(text)

    assert short.endswith(f"[redacted] … ({len(text) - 8_192} more)")
    assert "b3BlbnNz" not in short


def test_warnings_are_lines_like_all_others() -> None:
    program = "from nixops_operator import logs; import warnings; logs.set_up('INFO'); warnings.warn('old')"
    done = _python(program)

    assert [json.loads(line)["logger"] for line in done.stderr.splitlines()] == ["py.warnings"]


def test_what_ends_the_process_is_a_line_like_all_others() -> None:
    program = "from nixops_operator import logs; logs.set_up('INFO'); raise ValueError('AKIAIOSFODNN7EXAMPLE')"
    done = _python(program)

    (line,) = map(json.loads, done.stderr.splitlines())
    assert (done.returncode, line["event"], line["level"]) == (1, "ending: ValueError", "critical")
    assert "AKIA" not in line["exception"]


def test_settings_that_are_refused_are_told_a_line_each(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("workers: 0\nresyncPerod: 5s\n")
    done = _python("from nixops_operator.__main__ import main; main()", NIXOPS_CONFIG=str(tmp_path / "config.yaml"))

    said = [json.loads(line)["event"] for line in done.stderr.splitlines()]
    assert done.returncode == 14
    assert said == [
        "settings: workers: Input should be greater than or equal to 1",
        "settings: resyncPerod: there is no such setting; did you mean resyncPeriod?",
    ]


def _python(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(ROOT / "operator"), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
