"""Limits of the kernel are raised, never lowered, and what was done is said."""

from pathlib import Path

import pytest

from nixops_lab import limits


def place(folder: Path, value: str) -> Path:
    made = folder / "fs/inotify/max_user_instances"
    made.parent.mkdir(parents=True)
    made.write_text(value)
    return made


def test_a_low_limit_is_raised_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limit = place(tmp_path, "128\n")
    limits.raise_limits(tmp_path)
    assert int(limit.read_text()) >= 50 * limits.INOTIFY_PER_MACHINE
    assert "fs.inotify.max_user_instances raised from 128 to" in capsys.readouterr().err


def test_a_higher_limit_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limit = place(tmp_path, "1000000\n")
    limits.raise_limits(tmp_path)
    assert (limit.read_text(), capsys.readouterr().err) == ("1000000\n", "")


def test_one_that_cannot_be_raised_is_said_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place(tmp_path, "128\n")

    def refuse(self: Path, text: str) -> int:
        raise PermissionError(1, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", refuse)
    limits.raise_limits(tmp_path)
    assert "run `sysctl fs.inotify.max_user_instances=" in capsys.readouterr().err
