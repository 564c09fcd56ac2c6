# system.activationScripts: { name = text | { text, deps, supportsDryActivation } } → `activate`.
#
# Snippets run in the order of their `deps`. One that fails does not stop the others; the script ends
# with 1. /run/current-system moves last, so that an `activate` that was cut is seen as not done.
{ config, lib, ... }:
let
  inherit (lib) mkOption types;
  snippet = types.coercedTo types.str lib.noDepEntry (types.submodule {
    options = {
      text = mkOption { type = types.lines; };
      deps = mkOption { type = types.listOf types.str; default = [ ]; };
      supportsDryActivation = mkOption { type = types.bool; default = false; };
    };
  });

  # Names in an order in which each comes after its `deps`.
  ordered = set:
    let
      visit = state: name:
        if lib.elem name state.done then state
        else if lib.elem name state.above then throw "the activation scripts ${lib.concatStringsSep " → " (state.above ++ [ name ])} wait for each other"
        else
          let inner = builtins.foldl' visit (state // { above = state.above ++ [ name ]; }) (builtins.filter (d: set ? ${d}) set.${name}.deps);
          in { done = inner.done ++ [ name ]; above = state.above; };
    in
    (builtins.foldl' visit { done = [ ]; above = [ ]; } (builtins.attrNames set)).done;

  run = set: name: ''
    #### Activation script snippet ${name}:
    _localstatus=0
    ${set.${name}.text}

    if (( _localstatus > 0 )); then
      printf "Activation script snippet '%s' failed (%s)\n" "${name}" "$_localstatus"
    fi
  '';
  head = ''
    #!/bin/bash

    systemConfig='@out@'

    export PATH=/empty:/usr/sbin:/usr/bin:/sbin:/bin
    export NIXOS_ACTION="''${NIXOS_ACTION:-}"

    _status=0
    _localstatus=0
    trap "_status=1 _localstatus=\$?" ERR
    umask 0022
  '';
  script = set: head + lib.concatMapStrings (run set) (ordered set);
  dry = lib.filterAttrs (_: s: s.supportsDryActivation) config.system.activationScripts;
in
{
  options.system = {
    activationScripts = mkOption { type = types.attrsOf snippet; default = { }; };
    userActivationScripts = mkOption { type = types.attrs; default = { }; };
    activationScript = mkOption { type = types.str; internal = true; readOnly = true; };
    dryActivationScript = mkOption { type = types.str; internal = true; readOnly = true; };
  };
  config.system = {
    activationScripts.var = ''
      mkdir -p /var/lib/nixos /var/empty /run/nixos /nix/var/nix/gcroots /nix/var/nix/profiles
      [ -e /etc/NIXOS ] || touch /etc/NIXOS
    '';
    activationScripts.users.deps = [ "var" ];
    activationScript = script config.system.activationScripts + ''
      # Last, and in one step: what /run/current-system names has been activated.
      ln -sfn "$(readlink -f "$systemConfig")" /run/.current-system.new
      mv -T /run/.current-system.new /run/current-system
      ln -sfn /run/current-system /nix/var/nix/gcroots/current-system

      exit $_status
    '';
    dryActivationScript = script dry + ''
      exit $_status
    '';
  };
}
