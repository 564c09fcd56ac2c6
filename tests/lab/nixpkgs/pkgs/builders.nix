# The trivial builders and a small stdenv: { lib, system, pkgs } → functions that make derivations.
#
# A builder is the machine's own /bin/sh and bash with PATH=/usr/bin:/bin; it uses no network and
# writes nothing but $out, so that equal inputs give equal bytes.
{ lib, system, pkgs }:
let
  run = "export PATH=/usr/bin:/bin LC_ALL=C TZ=UTC; exec bash -euo pipefail \"$buildCommandPath\"";

  derive = name: environment: buildCommand:
    builtins.derivation (environment // {
      inherit name system buildCommand;
      builder = "/bin/sh";
      args = [ "-c" run ];
      passAsFile = [ "buildCommand" ] ++ environment.passAsFile or [ ];
    });

  hidden = [ "meta" "passthru" "pname" "version" "src" "outputs" ];
  finish = { meta ? { }, passthru ? { }, ... }@attributes: drv:
    passthru // drv // { inherit meta; } // builtins.intersectAttrs { pname = null; version = null; } attributes;

  phases = ''
    if [ -n "''${src-}" ]; then
      if [ -d "$src" ]; then cp -r "$src" source; else mkdir source; tar -C source --strip-components=1 -xf "$src"; fi
      chmod -R u+w source; cd source
    fi
  '';
in
rec {
  stdenv = {
    hostPlatform = lib.systemOf system;
    buildPlatform = stdenv.hostPlatform;
    isLinux = true;
    shell = "/bin/bash";
    # Phases as texts: unpack (a folder or a tar archive), buildPhase, installPhase; or buildCommand alone.
    mkDerivation = given:
      let
        attributes = if lib.isFunction given then (let self = given (self // { finalPackage = result; }); in self) else given;
        name = attributes.name or "${attributes.pname}-${attributes.version}";
        command = attributes.buildCommand or ''
          ${lib.optionalString (!(attributes.dontUnpack or false)) phases}
          ${attributes.patchPhase or ""}
          ${attributes.buildPhase or ""}
          ${attributes.installPhase or ""}
        '';
        dropped = hidden ++ [ "name" "buildCommand" "patchPhase" "buildPhase" "installPhase" "dontUnpack" ];
        result = finish attributes (derive name
          (removeAttrs attributes dropped // lib.optionalAttrs (attributes ? src) { inherit (attributes) src; }
            // lib.optionalAttrs (attributes ? outputs) { inherit (attributes) outputs; })
          command);
      in
      result;
  };

  runCommand = name: environment: command: finish environment (derive name (removeAttrs environment [ "meta" "passthru" ]) command);
  runCommandLocal = name: environment: runCommand name (environment // { preferLocalBuild = true; allowSubstitutes = false; });

  writeTextFile = { name, text, executable ? false, destination ? "", meta ? { }, ... }:
    finish { inherit meta; } (derive name
      { inherit text; passAsFile = [ "text" ]; preferLocalBuild = true; allowSubstitutes = false; }
      ''
        target=$out${lib.escapeShellArg destination}
        mkdir -p "$(dirname "$target")"
        cp "$textPath" "$target"
        ${lib.optionalString executable "chmod +x \"$target\""}
      '');
  writeText = name: text: writeTextFile { inherit name text; };
  writeTextDir = path: text: writeTextFile { name = builtins.baseNameOf path; destination = "/${path}"; inherit text; };
  writeScript = name: text: writeTextFile { inherit name text; executable = true; };
  writeScriptBin = name: text: writeTextFile { inherit name text; executable = true; destination = "/bin/${name}"; };
  writeShellScript = name: text: writeScript name "#!/bin/bash\n${text}";
  writeShellScriptBin = name: text: writeTextFile {
    inherit name;
    text = "#!/bin/bash\n${text}";
    executable = true;
    destination = "/bin/${name}";
    meta.mainProgram = name;
  };
  writeShellApplication = { name, text, runtimeInputs ? [ ], ... }:
    writeShellScriptBin name "set -euo pipefail\nexport PATH=${lib.makeBinPath runtimeInputs}:$PATH\n${text}";

  # Many small files in one derivation: { "path" = { text, mode ? "0444" } or { source }; }. One build
  # instead of one for each file: a build costs tens of milliseconds however small it is.
  fileTree = name: files:
    let
      entries = lib.imap0 (i: path: files.${path} // { inherit path; variable = "file${toString i}"; }) (builtins.attrNames files);
      texts = builtins.filter (e: e ? text) entries;
      place = e:
        "mkdir -p \"$out\"/${lib.escapeShellArg (builtins.dirOf e.path)}; "
        + (if e ? text then "cp \"\$${e.variable}Path\" \"$out\"/${lib.escapeShellArg e.path}"
          + lib.optionalString (e.executable or false) "; chmod +x \"$out\"/${lib.escapeShellArg e.path}"
        else "ln -s ${lib.escapeShellArg "${e.source}"} \"$out\"/${lib.escapeShellArg e.path}");
    in
    derive name
      (builtins.listToAttrs (map (e: lib.nameValuePair e.variable e.text) texts) // {
        passAsFile = map (e: e.variable) texts;
        preferLocalBuild = true;
        allowSubstitutes = false;
      })
      "mkdir -p \"$out\"\n${lib.concatMapStringsSep "\n" place entries}";

  # Folders of the same name are joined; of files with the same name the first wins.
  buildEnv = { name, paths, pathsToLink ? [ "/" ], postBuild ? "", meta ? { }, ... }:
    runCommandLocal name { inherit meta; } ''
      mkdir -p "$out"
      for path in ${lib.escapeShellArgs (map toString (lib.unique (map toString paths)))}; do
        for part in ${lib.escapeShellArgs pathsToLink}; do
          [ -d "$path$part" ] || continue
          mkdir -p "$out$part"
          cp -rsn "$path$part/." "$out$part/"
          chmod -R u+w "$out"
        done
      done
      ${postBuild}
    '';
  symlinkJoin = { name, paths, ... }@given: buildEnv (given // { inherit name paths; });
  linkFarm = name: entries:
    let set = if builtins.isList entries then builtins.listToAttrs (map (e: lib.nameValuePair e.name e.path) entries) else entries;
    in fileTree name (builtins.mapAttrs (_: source: { inherit source; }) set);

  # Links to programs of the machine: { pname, version, bin ? [ ], sbin ? [ ], links ? { } } → package
  # with $out/bin/NAME → /usr/bin/NAME or /usr/sbin/NAME, and $out/PATH → target for each of `links`.
  fromDebian = { pname, version, bin ? [ ], sbin ? [ ], links ? { }, meta ? { } }:
    finish { inherit pname version meta; } (derive "${pname}-${version}" { preferLocalBuild = true; } ''
      mkdir -p "$out/bin"
      for program in ${lib.concatStringsSep " " bin}; do ln -s "/usr/bin/$program" "$out/bin/$program"; done
      for program in ${lib.concatStringsSep " " sbin}; do ln -s "/usr/sbin/$program" "$out/bin/$program"; done
      ${lib.concatStrings (lib.mapAttrsToList (path: target: ''
        mkdir -p "$(dirname "$out/${path}")"; ln -s ${lib.escapeShellArg target} "$out/${path}"
      '') links)}
    '');

  # A file by its hash, as nixpkgs' own fetchurl makes it: `urls` are tried in turn by a builder that has a network,
  # which only derivations with a fixed output are given.
  fetchurl = { url ? null, urls ? [ url ], name ? builtins.baseNameOf (builtins.head urls), hash ? "", sha256 ? "", executable ? false, ... }:
    builtins.derivation {
      inherit name system urls executable;
      builder = "/bin/sh";
      args = [ "-c" "export PATH=/usr/bin:/bin; for url in $urls; do curl --fail --silent --show-error --location --output \"$out\" \"$url\" && break; done; [ -z \"$executable\" ] || chmod +x \"$out\"" ];
      outputHashAlgo = if hash == "" then "sha256" else null;
      outputHash = if hash == "" then sha256 else hash;
      outputHashMode = if executable then "recursive" else "flat";
      preferLocalBuild = true;
      impureEnvVars = [ "http_proxy" "https_proxy" "no_proxy" ];
    };
  callPackage = f: overrides:
    let function = if lib.isFunction f then f else import f;
    in function (builtins.intersectAttrs (builtins.functionArgs function) pkgs // overrides);
  formats.json = { ... }: { type = lib.types.attrs; generate = name: value: writeText name (builtins.toJSON value); };
}
