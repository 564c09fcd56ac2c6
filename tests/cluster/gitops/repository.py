"""A git repository as its users have it: a working copy that is committed and pushed."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from nixops_lab import gitops
from nixops_lab.testing import Lab

_AS = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false")


@dataclass(frozen=True)
class Repository:
    """`folder`: the working copy. `url`: as Flux finds it."""

    folder: Path
    url: str

    @classmethod
    def made(cls, lab: Lab, name: str, folder: Path) -> Repository:
        repository = cls(folder, gitops.url(name))
        repository._git("init", "--quiet", "--initial-branch=main")
        repository._git("remote", "add", "origin", str(gitops.repository(lab.paths, name)))
        return repository

    def commit(self, message: str) -> str:
        """All that is in the working copy, pushed; the revision as Flux names it."""
        self._git("add", "--all")
        self._git(*_AS, "commit", "--quiet", "--allow-empty", f"--message={message}")
        self._git("push", "--quiet", "origin", "main")
        return f"main@sha1:{self._git('rev-parse', 'HEAD')}"

    def revert(self) -> str:
        """The last commit undone by another one."""
        self._git(*_AS, "revert", "--no-edit", "HEAD")
        self._git("push", "--quiet", "origin", "main")
        return f"main@sha1:{self._git('rev-parse', 'HEAD')}"

    def replace(self, file: str, old: str, new: str) -> None:
        """In one file; `old` must be there."""
        path = self.folder / file
        text = path.read_text()
        assert old in text, f"{old!r} is not in {file}"
        path.write_text(text.replace(old, new))

    def _git(self, *words: str) -> str:
        done = subprocess.run(["git", "-C", self.folder, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()
