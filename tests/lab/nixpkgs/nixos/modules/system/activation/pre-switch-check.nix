# system.preSwitchChecks and system.switch.inhibitors: what may refuse a switch before it begins.
#
# A check is a shell text with $1 = the toplevel, $2 = the action. Inhibitors: the file
# switch-inhibitors of the toplevel is a JSON map; a key that the running system also has, with another
# value, refuses every action but `boot`.
{ config, lib, pkgs, ... }:
let
  inherit (lib) mkOption types;
  quoted = builtins.toJSON;
  inhibitors = lib.mapAttrsToList (name: value: "  ${quoted name}: ${quoted value}") config.system.switch.inhibitors;
  check = name: text: ''
    if ! (
      set -e
      ${text}
    ) >&2; then
      echo "Pre-switch check '${name}' failed" >&2
      exit 1
    fi
  '';
in
{
  options.system = {
    preSwitchChecks = mkOption { type = types.attrsOf types.str; default = { }; };
    preSwitchChecksScript = mkOption { type = types.package; internal = true; };
    switch.inhibitors = mkOption { type = types.attrsOf types.str; default = { }; };
    build.switchInhibitors = mkOption { type = types.str; internal = true; };
  };
  config.system = {
    # One pair a line: the shell script compares lines.
    build.switchInhibitors = if inhibitors == [ ] then "{}\n" else "{\n${lib.concatStringsSep ",\n" inhibitors}\n}\n";
    preSwitchChecks.switchInhibitors = ''
      running=/run/current-system/switch-inhibitors
      if [ "$2" != boot ] && [ -e "$running" ]; then
        refused=0
        while IFS= read -r line; do
          key=''${line%%\": *}
          if before=$(sed 's/,$//' "$running" | grep -F -- "$key\": ") && [ "$before" != "$line" ]; then
            echo "switch inhibitor$key\": $before is now $line: reboot into the new system" >&2
            refused=1
          fi
        done < <(sed -n 's/,$//; /": /p' "$1/switch-inhibitors")
        [ "$refused" = 0 ]
      fi
    '';
    preSwitchChecksScript = pkgs.writeShellScript "pre-switch-checks" (lib.concatStrings (lib.mapAttrsToList check config.system.preSwitchChecks));
  };
}
