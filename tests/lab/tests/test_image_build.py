"""The operator's image: what a build takes of this machine, and that nothing of it stays."""

from __future__ import annotations

import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from nixops_lab import debian, image
from nixops_lab.image import base
from nixops_lab.image.reach import pip_settings

USER_ID = 65532


class TestMirrors:
    SOURCES = (
        "deb [signed-by=/a b] http://mirror.example/debian/ bookworm main\n"
        "deb http://mirror.example/debian/ bookworm-updates main\n"
        "deb http://security.example/ bookworm-security main\n"
        "deb http://other.example/ bookwormish main\n"
    )

    def test_are_those_of_the_release_and_its_parts(self) -> None:
        assert debian.mirrors(self.SOURCES, "bookworm") == {
            "": "http://mirror.example/debian/",
            "-updates": "http://mirror.example/debian/",
            "-security": "http://security.example/",
        }

    def test_of_a_release_that_is_not_there_are_none(self) -> None:
        assert debian.mirrors(self.SOURCES, "trixie") == {}


class TestPipsSettings:
    def test_only_those_that_say_where_packages_come_from(self) -> None:
        assert pip_settings(["global.cert='/ca.crt'", "global.find-links='/wheels'", "install.no-compile='1'"]) == {
            "cert": "/ca.crt"
        }

    def test_the_environment_wins(self) -> None:
        listing = [":env:.proxy='http://env.example'", "global.proxy='http://file.example'"]

        assert pip_settings(listing) == {"proxy": "http://env.example"}
        assert pip_settings(reversed(listing)) == {"proxy": "http://env.example"}


@pytest.fixture(scope="module")
def root() -> Path:
    return image.build_root()


@pytest.fixture(scope="module")
def config() -> dict[str, object]:
    """Of the OCI image (image-spec, config.md)."""
    with tarfile.open(image.build().archive) as archive:

        def content(name: str) -> dict[str, object]:
            file = archive.extractfile(name)
            assert file is not None
            return dict(json.load(file))

        def blob(descriptor: dict[str, str]) -> dict[str, object]:
            return content("blobs/" + descriptor["digest"].replace(":", "/"))

        (only,) = content("index.json")["manifests"]  # type: ignore[misc]
        return blob(blob(only)["config"])  # type: ignore[arg-type]


@pytest.mark.lab
class TestTheImage:
    def test_holds_nothing_of_this_machine(self, root: Path) -> None:
        assert (root / base.SOURCES).read_text() == base.deb822(base.PUBLISHED_MIRRORS)
        assert sorted(path.name for path in (root / "etc/apt/apt.conf.d").iterdir()) == ["01autoremove", "70debconf"]
        assert sorted(path.name for path in (root / "root").iterdir()) == [".bashrc", ".profile"]
        assert not [name for name in ("resolv.conf", "hosts", "hostname", "pip.conf") if (root / "etc" / name).exists()]

    def test_runs_as_the_pods_user_with_an_environment_of_its_own(self, config: dict[str, object]) -> None:
        run = dict(config["config"])  # type: ignore[call-overload]

        assert run["User"] == f"{USER_ID}:{USER_ID}"
        assert run["Entrypoint"] == ["nixops-operator"]
        names = {each.partition("=")[0] for each in run["Env"]}
        assert names == {"PATH", "HOME", "USER", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}

    def test_has_debians_python_and_a_nix_that_is_mended(self, root: Path) -> None:
        def said(*command: str) -> str:
            done = subprocess.run(["chroot", root, *command], check=True, capture_output=True, text=True)
            return done.stdout

        version = said("/opt/nixops-operator/bin/python", "-c", "import sys, nixops_operator; print(sys.version)")
        assert version.startswith("3.13.")
        assert f"nixops:x:{USER_ID}:" in (root / "etc/passwd").read_text()
        # CVE-2026-39860 is fixed from 2.34.5 on.
        package = said("dpkg-query", "--show", "--showformat=${Version}", "nix-bin")
        subprocess.run(["dpkg", "--compare-versions", package, "ge", "2.34.5"], check=True)
