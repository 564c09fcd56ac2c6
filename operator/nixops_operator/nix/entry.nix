# The root of every evaluation.
#
# { guests :: [ input → NixOS module ],  ownFiles :: see own_files.nix,  input :: JSON text }
#   →  { drvPath, toplevel, warnings }
#
# input: { name, deployment, uuid, system, isEc2, stateVersion :: string or null, trustedPublicKey,
#          arguments :: attrs of strings,
#          keys :: name → { path, user, group, permissions, isFirst },  nixpkgs, source, inline :: { path, hash } or null,
#          nixpkgsFolder :: inside of nixpkgs, or "",
#          modules :: [ { path } in source | { file } in inline ] }
#
# No attribute of the result is called outPath: `--json` prints such a set as that one string.
{
  guests,
  ownFiles,
  input,
}:
let
  request = builtins.fromJSON input;

  # With its hash a store path may be read in pure and restricted mode; without it, it may not.
  tree =
    given:
    builtins.path {
      name = "source";
      inherit (given) path;
      sha256 = given.hash;
    };

  moduleFile = module: if module ? path then tree request.source + "/${module.path}" else tree request.inline + "/${module.file}";

  # A path, as `<nixpkgs>` is everywhere.
  nixpkgs =
    /.
    + builtins.unsafeDiscardStringContext (
      tree request.nixpkgs + (if request.nixpkgsFolder == "" then "" else "/${request.nixpkgsFolder}")
    );

  lib = ownFiles {
    inherit nixpkgs;
    inherit (request) system;
    own = map (given: given.path) (
      builtins.filter (given: given != null) [
        request.source
        request.inline
      ]
    );
  };

  evaluated = import (nixpkgs + "/nixos/lib/eval-config.nix") {
    inherit lib;
    inherit (request) system;
    modules = map moduleFile request.modules ++ map (guest: guest request) guests;
    specialArgs = request.arguments // {
      inherit (request) name uuid;
      deploymentName = request.deployment;
      nodes.${request.name} = evaluated;
      resources = { };
    };
  };

  toplevel = evaluated.config.system.build.toplevel;
in
{
  inherit (toplevel) drvPath;
  toplevel = toplevel.outPath;
  inherit (evaluated.config) warnings;
}
