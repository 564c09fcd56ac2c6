# systemd.{services,timers,paths,targets,sockets,mounts}: declarations → unit files under etc/systemd/system.
#
# The [Unit] keys X-RestartIfChanged, X-ReloadIfChanged, X-StopIfChanged, X-Restart-Triggers,
# X-Reload-Triggers and X-StopOnRemoval are NixOS' own: systemd ignores keys with X-, and
# switch-to-configuration reads them (NixOS manual, "What happens during a system switch?").
{ config, lib, pkgs, ... }:
let
  cfg = config.systemd;
  inherit (lib) mkOption types optionalAttrs;

  atom = types.nullOr (types.oneOf [ types.bool types.int types.float types.str types.path types.package ]);
  section = types.attrsOf (types.either atom (types.listOf atom));
  names = mkOption { type = types.listOf types.str; default = [ ]; };
  dependencies = [ "requires" "wants" "upholds" "requisite" "bindsTo" "partOf" "conflicts" "before" "after" "onFailure" "onSuccess" ];
  key = name: lib.toUpper (lib.substring 0 1 name) + lib.substring 1 (lib.stringLength name) name;

  unitOptions = {
    enable = mkOption { type = types.bool; default = true; };
    description = mkOption { type = types.singleLineStr; default = ""; };
    documentation = names;
    unitConfig = mkOption { type = section; default = { }; };
    wantedBy = names;
    requiredBy = names;
    upheldBy = names;
    aliases = names;
    stopIfChanged = mkOption { type = types.bool; default = true; };
    restartIfChanged = mkOption { type = types.bool; default = true; };
    reloadIfChanged = mkOption { type = types.bool; default = false; };
    restartTriggers = mkOption { type = types.listOf types.unspecified; default = [ ]; };
    reloadTriggers = mkOption { type = types.listOf types.unspecified; default = [ ]; };
    startLimitBurst = mkOption { type = types.nullOr types.int; default = null; };
    startLimitIntervalSec = mkOption { type = types.nullOr types.int; default = null; };
  } // lib.genAttrs dependencies (_: names);

  script = mkOption { type = types.lines; default = ""; };
  serviceOptions = unitOptions // {
    environment = mkOption { type = types.attrsOf (types.nullOr (types.oneOf [ types.str types.path types.package types.int ])); default = { }; };
    path = mkOption { type = types.listOf (types.either types.package types.str); default = [ ]; };
    serviceConfig = mkOption { type = section; default = { }; };
    startAt = mkOption { type = types.coercedTo types.str lib.toList (types.listOf types.str); default = [ ]; };
    scriptArgs = mkOption { type = types.str; default = ""; };
    script = script;
    preStart = script;
    postStart = script;
    reload = script;
    preStop = script;
    postStop = script;
    enableDefaultPath = mkOption { type = types.bool; default = true; };
  };

  shown = v: if v == true then "true" else if v == false then "false" else toString v;
  lines = set: lib.concatStrings (lib.mapAttrsToList
    (name: value: lib.concatMapStrings (v: lib.optionalString (v != null) "${name}=${shown v}\n") (lib.toList value))
    set);
  triggers = list: lib.concatMapStringsSep " " (t: if builtins.isAttrs t && !(t ? outPath) then builtins.toJSON t else toString t) list;

  unitSection = unit:
    optionalAttrs (unit.description != "") { Description = unit.description; }
    // optionalAttrs (unit.documentation != [ ]) { Documentation = unit.documentation; }
    // lib.listToAttrs (map (d: lib.nameValuePair (key d) unit.${d}) (builtins.filter (d: unit.${d} != [ ]) dependencies))
    // optionalAttrs (unit.startLimitBurst != null) { StartLimitBurst = unit.startLimitBurst; }
    // optionalAttrs (unit.startLimitIntervalSec != null) { StartLimitIntervalSec = unit.startLimitIntervalSec; }
    // optionalAttrs (!unit.stopIfChanged) { X-StopIfChanged = false; }
    // optionalAttrs (!unit.restartIfChanged) { X-RestartIfChanged = false; }
    // optionalAttrs unit.reloadIfChanged { X-ReloadIfChanged = true; }
    // optionalAttrs (unit.restartTriggers != [ ]) { X-Restart-Triggers = triggers unit.restartTriggers; }
    // optionalAttrs (unit.reloadTriggers != [ ]) { X-Reload-Triggers = triggers unit.reloadTriggers; }
    // unit.unitConfig;

  # What systemd escapes in the name of a unit cannot be in a store path.
  job = name: phase: text:
    let script = "unit-script-${builtins.replaceStrings [ "\\" "@" ":" ] [ "-" "-" "-" ] name}-${phase}";
    in "${pkgs.writeShellScriptBin script "set -e\n${text}"}/bin/${script}";
  defaultPath = with pkgs; [ coreutils findutils gnugrep gnused systemd ];
  serviceSection = name: unit:
    let
      path = unit.path ++ lib.optionals unit.enableDefaultPath defaultPath;
      environment = optionalAttrs (path != [ ]) { PATH = lib.concatMapStringsSep ":" (p: "${p}/bin") path; } // unit.environment;
      phases = {
        ExecStartPre = unit.preStart;
        ExecStartPost = unit.postStart;
        ExecReload = unit.reload;
        ExecStop = unit.preStop;
        ExecStopPost = unit.postStop;
      };
      given = lib.filterAttrs (_: text: text != "") phases;
      fileName = { ExecStartPre = "pre-start"; ExecStartPost = "post-start"; ExecReload = "reload"; ExecStop = "pre-stop"; ExecStopPost = "post-stop"; };
    in
    { Environment = lib.mapAttrsToList (n: v: builtins.toJSON "${n}=${toString v}") (lib.filterAttrs (_: v: v != null) environment); }
    // optionalAttrs (unit.script != "") { ExecStart = "${job name "start" unit.script} ${unit.scriptArgs}"; }
    // builtins.mapAttrs (phase: text: [ (job name fileName.${phase} text) ] ++ lib.toList (unit.serviceConfig.${phase} or [ ])) given
    // removeAttrs unit.serviceConfig (builtins.attrNames given);

  text = sections: lib.concatStringsSep "\n" (lib.mapAttrsToList (name: set: "[${name}]\n${lines set}") sections);
  render = {
    service = name: unit: text { Unit = unitSection unit; Service = serviceSection name unit; };
    target = _: unit: text { Unit = unitSection unit; };
    timer = _: unit: text { Unit = unitSection unit; Timer = unit.timerConfig; };
    path = _: unit: text { Unit = unitSection unit; Path = unit.pathConfig; };
    mount = _: unit: text {
      Unit = unitSection unit;
      Mount = { What = unit.what; Where = unit.where; Type = unit.type; Options = unit.options; } // unit.mountConfig;
    };
    socket = _: unit: text {
      Unit = unitSection unit;
      Socket = optionalAttrs (unit.listenStreams != [ ]) { ListenStream = unit.listenStreams; } // unit.socketConfig;
    };
  };

  # One unit → its entries in environment.etc. A disabled unit is masked, as on NixOS.
  entries = kind: name: unit:
    let
      file = "${name}.${kind}";
      at = folder: lib.nameValuePair "systemd/system/${folder}/${file}" { source = "/etc/systemd/system/${file}"; };
      links = map (t: at "${t}.wants") unit.wantedBy ++ map (t: at "${t}.requires") unit.requiredBy ++ map (t: at "${t}.upholds") unit.upheldBy
        ++ map (alias: lib.nameValuePair "systemd/system/${alias}" { source = "/etc/systemd/system/${file}"; }) unit.aliases;
    in
    if unit.enable
    then [ (lib.nameValuePair "systemd/system/${file}" { text = render.${kind} name unit; }) ] ++ links
    else [ (lib.nameValuePair "systemd/system/${file}" { source = "/dev/null"; }) ];
  all = kind: units: lib.concatLists (lib.mapAttrsToList (entries kind) units);
  unitsOf = options: mkOption { type = types.attrsOf (types.submodule { inherit options; }); default = { }; };
  masked = map (unit: lib.nameValuePair "systemd/system/${unit}" { source = "/dev/null"; }) cfg.suppressedSystemUnits;
in
{
  options.systemd = {
    services = unitsOf serviceOptions;
    targets = unitsOf unitOptions;
    timers = unitsOf (unitOptions // { timerConfig = mkOption { type = section; default = { }; }; });
    paths = unitsOf (unitOptions // { pathConfig = mkOption { type = section; default = { }; }; });
    sockets = unitsOf (unitOptions // { listenStreams = names; socketConfig = mkOption { type = section; default = { }; }; });
    mounts = mkOption {
      type = types.listOf (types.submodule {
        options = unitOptions // {
          what = mkOption { type = types.str; };
          where = mkOption { type = types.str; };
          type = mkOption { type = types.str; default = ""; };
          options = mkOption { type = types.str; default = ""; };
          mountConfig = mkOption { type = section; default = { }; };
        };
      });
      default = [ ];
    };
    package = mkOption { type = types.package; default = pkgs.systemd; };
    suppressedSystemUnits = mkOption { type = types.listOf types.str; default = [ ]; };
  };
  config = {
    # A service with startAt brings a timer of its name.
    systemd.timers = lib.mapAttrs (_: s: { wantedBy = [ "timers.target" ]; timerConfig.OnCalendar = s.startAt; })
      (lib.filterAttrs (_: s: s.enable && s.startAt != [ ]) cfg.services);
    # Debian's own, whose work our services do.
    systemd.suppressedSystemUnits = [ "ssh.service" "ssh.socket" "apache2.service" "apache-htcacheclean.service" "nftables.service" ];
    environment.etc = builtins.listToAttrs (masked ++ all "service" cfg.services ++ all "target" cfg.targets ++ all "timer" cfg.timers ++ all "path" cfg.paths ++ all "socket" cfg.sockets
      ++ lib.concatMap (mount: entries "mount" (lib.escapeSystemdPath mount.where) mount) cfg.mounts);
  };
}
