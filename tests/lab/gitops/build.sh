#!/bin/bash
# Compiles what judges and applies in GitOps, from Go modules, once, into a cache outside the checkout: Flux'
# source-controller and kustomize-controller with their CRDs, kstatus (kstatus/main.go), and what encrypts for them: sops
# and age-keygen, of the versions that kustomize-controller decrypts with.
# Prints the folder that holds them on stdout; progress goes to stderr. About 8 minutes on two cores, then instant.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
say() { printf '[gitops] %s\n' "$*" >&2; }

version=v1.9.5
# The controller's own copy of it is replaced by a folder of its repository, which the module does not hold.
artifact=github.com/fluxcd/pkg/artifact@v0.18.1
programs=(source-controller kustomize-controller kstatus sops age-keygen)
id=$( (cat "$here"/build.sh "$here"/kstatus/{go.mod,go.sum,main.go}; uname -m) | sha256sum | cut -c1-16)
cache="${XDG_CACHE_HOME:-$HOME/.cache}/nixops-lab"
out="$cache/gitops-$id"

complete() { [ -d "$out/crds" ] && for program in "${programs[@]}"; do [ -x "$out/$program" ] || return 1; done; }
if complete; then printf '%s\n' "$out"; exit 0; fi
mkdir -p "$out"
exec 9>"$cache/gitops.lock"
flock -n 9 || { say "another build is running; waiting for it"; flock 9; }
if complete; then printf '%s\n' "$out"; exit 0; fi

go=$(command -v go || true)
[ -n "$go" ] || go="$cache/go/bin/go"  # as control_plane/build.sh installs it
export GOTOOLCHAIN=local GOFLAGS="-buildvcs=false"
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT

again() { # again COMMAND…: a module proxy has bad minutes
  local pause
  for pause in 5 15 45 90 last; do
    "$@" && return
    [ "$pause" = last ] || { say "the modules did not come, trying again in $pause s"; sleep "$pause"; }
  done
  return 1
}

flux() { # flux NAME REPLACEMENT PACKAGE…: one controller and its CRDs, and programs of modules that it needs anyway
  local name=$1 module=github.com/fluxcd/$1 replacement=$2 began=$SECONDS package
  [ -x "$out/$name" ] && return
  say "compiling $name (3 to 4 minutes on two cores)"
  again "$go" mod download "$module@$version"
  cp -R "$("$go" env GOMODCACHE)/$module@$version" "$work/$name"
  chmod -R u+w "$work/$name"
  (
    cd "$work/$name"
    "$go" mod edit -dropreplace "$module/api" ${replacement:+"-replace=$replacement"}
    for package in . "${@:3}"; do
      again "$go" list -mod=mod -deps "$package" >/dev/null
      "$go" build -mod=mod -trimpath -ldflags '-s -w' -o "$out/new/" "$package"
    done
  )
  mkdir -p "$out/crds.new"
  cp "$work/$name"/config/crd/bases/*.yaml "$out/crds.new/"
  for package in "${@:3}" "$name"; do mv "$out/new/${package##*/}" "$out/"; done
  say "$name done in $((SECONDS - began)) s"
}
flux source-controller "${artifact%@*}=$artifact"
flux kustomize-controller "" github.com/getsops/sops/v3/cmd/sops filippo.io/age/cmd/age-keygen
if [ ! -x "$out/kstatus" ]; then
  again "$go" -C "$here/kstatus" list -mod=readonly -deps . >/dev/null
  "$go" -C "$here/kstatus" build -mod=readonly -trimpath -ldflags '-s -w' -o "$out/kstatus.new" .
  mv "$out/kstatus.new" "$out/kstatus"
fi
rmdir "$out/new"
mv "$out/crds.new" "$out/crds"
printf '%s\n' "$out"
