# The operator's image: Debian's Python, the operator, Nix, bubblewrap. Not distroless, because Nix looks its user up in
# passwd and starts ssh and bubblewrap; not Alpine, for which there is no package of Nix that keeps its programs out of
# /nix. Debian's Python and not that of the `python` images: one source of security updates.

FROM debian:trixie-slim AS system
# Nix comes from Debian's next release: trixie has 2.26.3, and CVE-2026-39860 is fixed from 2.34.5 on. Its programs lie in
# /usr/bin, so that /nix may be an empty volume.
RUN mirror=$(sed --quiet 's/^URIs: *//p' /etc/apt/sources.list.d/debian.sources | head --lines=1) \
 && printf '%s\n' 'Types: deb' "URIs: $mirror" 'Suites: forky' 'Components: main' \
      'Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg' > /etc/apt/sources.list.d/forky.sources \
 && printf '%s\n' 'Package: *' 'Pin: release n=forky' 'Pin-Priority: 100' > /etc/apt/preferences.d/forky \
 && apt-get --quiet update \
 && apt-get --quiet install --yes --no-install-recommends \
      bubblewrap ca-certificates openssh-client python3 util-linux \
 && apt-get --quiet install --yes --no-install-recommends --target-release forky nix-bin \
 && rm -rf /etc/apt/sources.list.d/forky.sources /etc/apt/preferences.d/forky /var/lib/apt/lists/* /var/cache/apt/*.bin \
 && dpkg --compare-versions "$(dpkg-query --show --showformat='${Version}' nix-bin)" ge 2.34.5 \
 && groupadd --gid 65532 nixops \
 && useradd --uid 65532 --gid 65532 --create-home nixops \
 && install --directory --owner=65532 --group=65532 /nix

FROM system AS dependencies
RUN apt-get --quiet update \
 && apt-get --quiet install --yes --no-install-recommends python3-hatchling python3-pip
WORKDIR /src
COPY requirements/runtime.txt requirements/runtime.txt
# Without pip in it: what is not there cannot install anything.
RUN python3 -m venv --without-pip /opt/nixops-operator \
 && pip --python /opt/nixops-operator/bin/python install --no-cache-dir --require-hashes \
      --requirement requirements/runtime.txt

FROM dependencies AS package
COPY pyproject.toml README.md LICENSE ./
COPY operator operator
# The build backend is Debian's, so that nothing is fetched here. Into a folder of its own: a layer for each, of which the
# large one changes seldom.
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
 && pip --python /opt/nixops-operator/bin/python install --no-cache-dir --no-deps --no-index --root /package /wheels/*.whl

FROM system
COPY --from=dependencies /opt/nixops-operator /opt/nixops-operator
COPY --from=package /package/opt/nixops-operator /opt/nixops-operator

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
