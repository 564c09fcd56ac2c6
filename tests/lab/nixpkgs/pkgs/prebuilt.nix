# Packages that come from elsewhere: { pkgs } → { cached, buildable, fromSource :: number → derivation; everything }.
#
# `cached` are built where the lab makes its binary cache, and nowhere else: whoever has not that cache fails with a
# word of it. `buildable` are in the cache, too, and can be built. `fromSource` are not in the cache: they are built here
# from a file that is fetched by its hash. Each needs the one of half its number, as packages need each other.
{ pkgs }:
let
  url = pkgs.config.labCacheUrl or "http://203.0.113.80";
  half = make: n: if n < 2 then "" else make (n / 2);

  # 64 KiB that hardly shrink: what a package weighs on the wire.
  content = n: "awk -v seed=${toString n} 'BEGIN { srand(seed); for (i = 0; i < 8192; i++) printf \"%08x\", int(rand() * 4294967295) }'";
  install = name: content: needs: ''
    mkdir -p "$out/share/${name}"
    ${content} >"$out/share/${name}/content"
    ${if needs == "" then "" else "ln -s ${needs}/share \"$out/share/${name}/needs\""}
  '';

  cached = n: pkgs.runCommand "cached-${toString n}-1.0" { } ''
    # Only in the mount namespace of the lab's cache maker.
    if [ ! -e /nix/.lab-cache-maker ]; then
      echo "cached-${toString n} is built nowhere but in the lab's binary cache: is it reached, and trusted?" >&2
      exit 1
    fi
    ${install "cached-${toString n}" (content n) (half cached n)}
  '';
  buildable = n: pkgs.runCommand "buildable-${toString n}-1.0" { } (install "buildable-${toString n}" "seq ${toString n} 9999" (half buildable n));

  text = n: "source ${toString n} of the lab\n";
  source = n: pkgs.fetchurl {
    url = "${url}/source/source-${toString n}.txt";
    sha256 = builtins.hashString "sha256" (text n);
  };
  fromSource = n: pkgs.runCommand "from-source-${toString n}-1.0" { src = source n; } ''
    mkdir -p "$out/share"
    cp "$src" "$out/share/from-source-${toString n}"
  '';
in
{
  inherit cached buildable source fromSource;
  # What the cache holds.
  everything = builtins.genList (n: cached (n + 1)) 200 ++ builtins.genList (n: buildable (n + 1)) 8;
}
