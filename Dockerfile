# The operator's image: Python, the operator, Nix, bubblewrap. Not distroless, because Nix looks its user up in passwd and
# starts ssh and bubblewrap; not Alpine, for which there is no package of Nix that keeps its programs out of /nix.

FROM python:3.13-slim-trixie AS python

FROM python AS build
WORKDIR /src
RUN python -m venv /opt/nixops-operator
COPY requirements/runtime.txt requirements/runtime.txt
RUN /opt/nixops-operator/bin/pip install --no-cache-dir --require-hashes --requirement requirements/runtime.txt
COPY pyproject.toml README.md LICENSE ./
COPY operator operator
RUN /opt/nixops-operator/bin/pip install --no-cache-dir --no-deps .

FROM python
# Nix comes from Debian's next release: trixie has 2.26.3, and CVE-2026-39860 is fixed from 2.34.5 on. Its programs lie in
# /usr/bin, so that /nix may be an empty volume.
RUN mirror=$(sed --quiet 's/^URIs: *//p' /etc/apt/sources.list.d/debian.sources | head --lines=1) \
 && printf '%s\n' 'Types: deb' "URIs: $mirror" 'Suites: forky' 'Components: main' \
      'Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg' > /etc/apt/sources.list.d/forky.sources \
 && printf '%s\n' 'Package: *' 'Pin: release n=forky' 'Pin-Priority: 100' > /etc/apt/preferences.d/forky \
 && apt-get update \
 && apt-get install --yes --no-install-recommends bubblewrap ca-certificates openssh-client util-linux \
 && apt-get install --yes --no-install-recommends --target-release forky nix-bin \
 && rm -rf /var/lib/apt/lists/* \
 && dpkg --compare-versions "$(dpkg-query --show --showformat='${Version}' nix-bin)" ge 2.34.5 \
 && groupadd --gid 65532 nixops \
 && useradd --uid 65532 --gid 65532 --create-home nixops \
 && install --directory --owner=65532 --group=65532 /nix
COPY --from=build /opt/nixops-operator /opt/nixops-operator

# Without a user's name Nix stops with "cannot figure out user name".
ENV PATH=/opt/nixops-operator/bin:/usr/local/bin:/usr/bin:/bin \
    HOME=/home/nixops \
    USER=nixops \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
WORKDIR /home/nixops
EXPOSE 8080
ENTRYPOINT ["nixops-operator"]
