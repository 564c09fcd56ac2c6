"""Passwords of binary caches, as a mounted Secret says them."""

from __future__ import annotations

from pathlib import Path

import pytest

from nixops_operator.adapters.egress.egress import Credential
from nixops_operator.composition import credentials_of
from nixops_operator.exits import Ended


def test_a_rotated_password_is_told_from_the_next_build_on(tmp_path: Path) -> None:
    file = tmp_path / "netrc"
    file.write_text("machine a.example.org login me password old\ndefault login me password everybodys\n")
    credentials = credentials_of(file)
    assert credentials() == {"a.example.org": Credential("me", "old")}
    file.write_text("machine a.example.org password new")
    assert credentials() == {"a.example.org": Credential("", "new")}


@pytest.mark.parametrize("content", [pytest.param(None, id="gone"), pytest.param(b"machine \xff", id="no text")])
def test_what_it_said_before_serves_where_it_cannot_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | None
) -> None:
    file = tmp_path / "netrc"
    file.write_text("machine a.example.org login me password hunter2")
    credentials = credentials_of(file)
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    assert credentials() == {"a.example.org": Credential("me", "hunter2")}
    assert "cannot be read" in caplog.text
    assert "hunter2" not in caplog.text


def test_at_the_start_it_has_to_be_readable(tmp_path: Path) -> None:
    assert credentials_of(None)() == {}
    (tmp_path / "netrc").write_text("machine a password hunter2 nonsense hunter3")
    with pytest.raises(Ended, match=r"nix\.netrcFile") as ended:
        credentials_of(tmp_path / "netrc")
    assert "hunter" not in str(ended.value)
