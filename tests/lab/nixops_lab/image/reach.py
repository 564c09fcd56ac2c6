"""How this machine reaches package registries: mirrors, certificates, pip's index. Shown to the build's commands as
mounts, so that nothing of it is in the image. (Variables like https_proxy buildah passes on by itself, and forgets.)

A mount needs a place that is there before: one that buildah has to make stays in the image, empty. Hence whole folders
of the base image, each with what was in it.
"""

import configparser
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from nixops_lab import debian
from nixops_lab.image import base

# Settings of pip that say where packages come from; others (a folder with wheels, an option for errors) are this
# machine's own affair.
PIP_REACH = re.compile(r"(client-)?cert|(default-)?timeout|proxy|retries|trusted-host|[a-z-]+-url")
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
HOME = "/root"  # of the build's commands; there pip looks for its settings


def lay_out(folder: Path, base_root: Path) -> list[tuple[Path, str]]:
    """Writes what is to be mounted into `folder`; (folder there, place in the build) of each. `base_root`: the base
    image's root file system."""
    apt, home = folder / "apt.conf.d", folder / "home"
    sources = folder / "sources.list.d"
    shutil.copytree(base_root / "etc/apt/apt.conf.d", apt)
    shutil.copytree(base_root / "root", home)
    home.chmod(0o755)  # apt fetches as a user of its own, who has to read the authorities
    sources.mkdir()
    (sources / Path(base.SOURCES).name).write_text(base.deb822(debian.own_mirrors()))
    (apt / "zz-build").write_text("".join(f"{_carried(line, home)};\n" for line in debian.reach()))
    settings = pip_settings(_pip_says())
    settings.setdefault("cert", str(AUTHORITIES))
    _write_pip(home, {key: _carried(value, home) for key, value in settings.items()})
    return [(apt, "/etc/apt/apt.conf.d"), (home, HOME), (sources, "/etc/apt/sources.list.d")]


def pip_settings(listing: Iterable[str]) -> dict[str, str]:
    """Of the lines of `pip config list`, `SECTION.NAME='VALUE'`, those that count here; the last one wins, as with pip,
    which lists the environment's (`:env:.NAME`) too."""
    found: dict[str, tuple[bool, str]] = {}
    for line in listing:
        name, equals, value = line.partition("=")
        section, _, key = name.rpartition(".")
        is_environment = section == ":env:"
        if equals and PIP_REACH.fullmatch(key) and (is_environment or not found.get(key, (False, ""))[0]):
            found[key] = (is_environment, value.strip().strip("'\""))
    return {key: value for key, (_, value) in found.items()}


def _pip_says() -> list[str]:
    argv = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()


def _write_pip(home: Path, settings: Mapping[str, str]) -> None:
    config = configparser.RawConfigParser()
    config["global"] = dict(settings)
    place = home / ".config/pip/pip.conf"
    place.parent.mkdir(parents=True)
    with place.open("w") as file:
        config.write(file)


def _carried(setting: str, home: Path) -> str:
    """The setting, with each file of this machine that it names copied into `home` and named there."""

    def carry(found: re.Match[str]) -> str:
        path = Path(found[0])
        if not path.is_file():
            return found[0]
        kept = home / "carried" / re.sub(r"[^\w.]", "_", found[0])
        kept.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, kept)
        kept.chmod(0o644)
        return f"{HOME}/{kept.relative_to(home)}"

    return re.sub(r"(?<![\w/:.])/[^\s\"';]+", carry, setting)
