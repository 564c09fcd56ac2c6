# bin/switch-to-configuration of a toplevel: sets the constants of this system, then runs the script.
{ config, lib, pkgs, ... }:
let
  cfg = config.test.stc;
  script = pkgs.writeTextFile { name = "switch-to-configuration.sh"; text = builtins.readFile ./switch-to-configuration.sh; executable = true; };
  constants = {
    TOPLEVEL = "@out@";
    INSTALL_BOOTLOADER = config.system.build.installBootLoader;
    PRE_SWITCH_CHECK = config.system.preSwitchChecksScript;
  } // lib.filterAttrs (_: v: v != "") {
    TEST_EXIT = lib.optionalString (cfg.exit != null) (toString cfg.exit);
    TEST_KIND = lib.optionalString (cfg.kind != "ng") cfg.kind;
    TEST_HANG_AT = lib.optionalString (cfg.hangAt != null) cfg.hangAt;
    TEST_GIVE_UP_AT = lib.optionalString (cfg.giveUpAt != null) cfg.giveUpAt;
    TEST_SPIN_WITH_LOCK = lib.optionalString cfg.spinWithLock "1";
    TEST_KILL_SSHD = lib.optionalString cfg.killSshd "1";
    TEST_SLOW = lib.optionalString (cfg.slow != 0) (toString cfg.slow);
  };
in
{
  options.system.switch.enable = lib.mkOption { type = lib.types.bool; default = true; };
  options.system.build.switchToConfiguration = lib.mkOption { type = lib.types.str; internal = true; };
  config.system.build.switchToConfiguration = ''
    #!/bin/bash
    ${lib.concatStrings (lib.mapAttrsToList (name: value: "export ${name}=${lib.escapeShellArg "${value}"}\n") constants)}
    exec ${script} "$@"
  '';
}
