"""`debian:trixie-slim` from Debian's packages: no registry of images is asked.

The published image is made the same way (debuerreotype: variant minbase, without manuals and translations). What the
two must share is what a Dockerfile can rely on: the packages, and apt's sources in `debian.sources`.
"""

import shutil
from pathlib import Path

from nixops_lab import debian

NAME = "docker.io/library/debian:trixie-slim"
SUITE = "trixie"
SOURCES = "etc/apt/sources.list.d/debian.sources"
# Stand for those of the published image: builds see this machine's own in their place (reach.py).
PUBLISHED_MIRRORS = {
    "": "http://mirror.example.org/debian",
    "-updates": "http://mirror.example.org/debian",
    "-security": "http://mirror.example.org/debian-security",
}


def recipe() -> str:
    """Changes when the base would."""
    return debian.digest(SUITE, deb822(PUBLISHED_MIRRORS), *debian.DPKG_OPTIONS)


def make(folder: Path) -> None:
    """Fills `folder`, half a minute. Raises LabError."""
    mirrors = debian.own_mirrors()
    sources = "".join(f"deb {uri} {SUITE}{part} main\n" for part, uri in mirrors.items() if part in PUBLISHED_MIRRORS)
    debian.make(folder, SUITE, (), "minbase", sources)
    # What mmdebstrap leaves of this machine.
    for name in ("etc/apt/sources.list", "etc/apt/apt.conf.d/99mmdebstrap", "etc/hostname", "etc/resolv.conf"):
        (folder / name).unlink(missing_ok=True)
    for name in ("var/lib/apt/lists", "var/cache/apt/archives"):
        shutil.rmtree(folder / name)
        (folder / name / "partial").mkdir(parents=True)
    (folder / SOURCES).write_text(deb822(PUBLISHED_MIRRORS))


def deb822(mirrors: dict[str, str]) -> str:
    """sources.list(5) of the release in the form of the published image. `mirrors`: as debian.mirrors gives them."""
    return "\n".join(
        f"Types: deb\nURIs: {uri}\nSuites: {SUITE}{part}\nComponents: main\nSigned-By: {debian.KEYRING}\n"
        for part, uri in mirrors.items()
    )
