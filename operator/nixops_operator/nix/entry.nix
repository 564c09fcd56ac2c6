# The root of every evaluation.
#
# { guests :: [ request → NixOS module ],  ownFiles :: see own_files.nix,  input, facts, peers :: JSON text }
#   →  { drvPath, toplevel, warnings }
#
# input: { name, deployment, uuid, system, isEc2, stateVersion :: string or null, trustedPublicKey,
#          arguments :: attrs of strings,
#          keys :: name → { path, user, group, permissions, isFirst },  nixpkgs, source, inline :: { path, hash } or null,
#          nixpkgsFolder :: inside of nixpkgs, or "",
#          modules :: [ { path } in source | { file } in inline ] }
# facts: path, as `nodes.db.config.networking.privateIPv4` → value. What is not there is not known.
# peers: name of another machine of the deployment → its input.
#
# Each fact that is read is told by the trace `@nixops-used <path>`, whether it is known or not: an evaluation holds as
# long as those facts stay what they are. A machine of `peers` is the fact `nodes.<name>`.
#
# No attribute of the result is called outPath: `--json` prints such a set as that one string.
{
  guests,
  ownFiles,
  input,
  facts,
  peers,
}:
let
  request = builtins.fromJSON input;
  known = builtins.fromJSON facts;
  given = builtins.fromJSON peers;

  used = path: builtins.trace "@nixops-used ${path}";
  unknown = path: throw "@nixops-unknown ${path}";
  fact = path: used path (known.${path} or (unknown path));

  # With its hash a store path may be read in pure and restricted mode; without it, it may not. And as its own context it
  # is asked for in the store's data base once, and remembered (Nix, src/libexpr/primops.cc, `addPath`: queryPathInfo).
  # Else pure evaluation asks at each look at a file whether its path is valid (src/libstore/local-fs-store.cc,
  # `requireStoreObject`), which takes as long again as all that Nix does in the kernel.
  tree =
    given:
    builtins.path {
      name = "source";
      path = builtins.appendContext given.path { ${given.path}.path = true; };
      sha256 = given.hash;
    };

  # A path, as `<nixpkgs>` is everywhere.
  nixpkgsOf =
    request:
    /.
    + builtins.unsafeDiscardStringContext (
      tree request.nixpkgs + (if request.nixpkgsFolder == "" then "" else "/${request.nixpkgsFolder}")
    );

  # Read once for all machines that have the same one: nothing keeps what was parsed in a scope.
  libKey = request: "${request.system} ${request.nixpkgs.path}/${request.nixpkgsFolder}";
  all = [ request ] ++ builtins.attrValues given;
  libs = builtins.listToAttrs (
    map (request: {
      name = libKey request;
      value = ownFiles {
        nixpkgs = nixpkgsOf request;
        inherit (request) system;
        own = map (given: given.path) (
          builtins.filter (given: given != null) (
            builtins.concatMap (request: [
              request.source
              request.inline
            ]) all
          )
        );
      };
    }) all
  );

  machine =
    extra: request:
    let
      moduleFile =
        module: if module ? path then tree request.source + "/${module.path}" else tree request.inline + "/${module.file}";
    in
    import (nixpkgsOf request + "/nixos/lib/eval-config.nix") {
      lib = libs.${libKey request};
      inherit (request) system;
      modules = map moduleFile request.modules ++ map (guest: guest (request // { inherit fact; })) guests ++ extra;
      specialArgs = request.arguments // {
        inherit (request) name uuid;
        deploymentName = request.deployment;
        inherit nodes resources;
      };
    };

  evaluated = machine [ ] request;

  # What is wrong elsewhere in another machine's configuration is told by that machine, and only by it.
  peer = name: used "nodes.${name}" (machine [ { _module.check = false; } ] (given.${name} or (unknown "nodes.${name}")));

  # As NixOps gives them (nix/eval-machine-info.nix).
  nodes =
    builtins.listToAttrs (
      map (name: {
        inherit name;
        value = peer name;
      }) (fact "nodes")
    )
    // {
      ${request.name} = evaluated;
    };

  resources = {
    machines = builtins.mapAttrs (_: node: node.config) nodes;
    ec2KeyPairs = ofKind "ec2-keypair" "resources.ec2KeyPairs" [ "name" ];
    ec2SecurityGroups = ofKind "ec2-security-group" "resources.ec2SecurityGroups" [
      "name"
      "groupId"
      "vpcId"
    ];
  };

  # What is declared, and what EC2 has said of it since.
  ofKind =
    type: path: said:
    builtins.mapAttrs (
      name: declared:
      declared
      // {
        _name = name;
        _type = type;
      }
      // builtins.listToAttrs (
        map (attribute: {
          name = attribute;
          value = fact "${path}.${name}.${attribute}";
        }) said
      )
    ) (fact path);

  toplevel = evaluated.config.system.build.toplevel;
in
{
  inherit (toplevel) drvPath;
  toplevel = toplevel.outPath;
  inherit (evaluated.config) warnings;
}
