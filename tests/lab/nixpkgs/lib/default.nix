# The library: { trivial, lists, strings, attrsets, generators, options, types, modules, … } with the
# usual functions also at the top, as in nixpkgs' lib/default.nix. Only what the modules here and
# ordinary user modules call; each function behaves as the one of the same name in the Nixpkgs manual.
let
  parts = {
    trivial = import ./trivial.nix { inherit lib; };
    lists = import ./lists.nix { inherit lib; };
    strings = import ./strings.nix { inherit lib; };
    attrsets = import ./attrsets.nix { inherit lib; };
    generators = import ./generators.nix { inherit lib; };
    options = import ./options.nix { inherit lib; };
    modules = import ./modules.nix { inherit lib; };
    types = import ./types.nix { inherit lib; };
  };
  lib =
    parts.trivial
    // parts.lists
    // parts.strings
    // parts.attrsets
    // parts.options
    // {
      inherit (parts.modules)
        evalModules mkIf mkMerge mkOverride mkForce mkDefault mkOptionDefault mkVMOverride mkImageMediaOverride
        mkBefore mkAfter mkOrder mkAssert mkAliasOptionModule mkRenamedOptionModule mkRemovedOptionModule
        defaultOverridePriority setDefaultModuleLocation;
      inherit (parts.types) mkOptionType;
    }
    // parts
    // {
      inherit lib;
      # Texts with an order: the entries of system.activationScripts.
      noDepEntry = text: { inherit text; deps = [ ]; };
      stringAfter = deps: text: { inherit text deps; };
      fullDepEntry = text: deps: { inherit text deps; };
      # "x86_64-linux" → what modules ask of a platform.
      systemOf = system: {
        inherit system;
        config = builtins.replaceStrings [ "-linux" ] [ "-unknown-linux-gnu" ] system;
        isx86_64 = system == "x86_64-linux";
        isAarch64 = system == "aarch64-linux";
        isLinux = true;
      };
      licenses = { asl20 = { spdxId = "Apache-2.0"; }; gpl2Only = { spdxId = "GPL-2.0-only"; }; };
      maintainers = { };
      platforms = { linux = [ "x86_64-linux" "aarch64-linux" ]; };
    };
in
lib
