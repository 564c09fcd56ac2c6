# test.*: ways for a configuration to go wrong or to weigh something, for tests of whoever deploys it. All are off.
{ config, lib, pkgs, ... }:
let
  inherit (lib) mkOption types;
  cfg = config.test;
  thousand = lib.range 1 1000;
  off = description: mkOption { type = types.bool; default = false; inherit description; };
in
{
  options.test = {
    stc = {
      kind = mkOption {
        type = types.enum [ "ng" "perl" "perl-2020" ];
        default = "ng";
        description = "Which of NixOS' programs switch-to-configuration behaves like: its head has the table.";
      };
      exit = mkOption {
        type = types.nullOr types.int;
        default = null;
        description = "switch-to-configuration ends with this: 1 and 11 before anything has changed, 100 after the boot loader, others at the end of a full run.";
      };
      hangAt = mkOption {
        type = types.nullOr (types.enum [ "check" "stop" "activate" "reload" "restart" "start" ]);
        default = null;
        description = "Sleep for ever as this phase begins, with the lock held.";
      };
      giveUpAt = mkOption {
        type = types.nullOr (types.enum [ "check" "stop" "activate" "activated" "reload" "restart" "start" ]);
        default = null;
        description = "End with an error as this phase begins, as where a program that it needs does not answer.";
      };
      slow = mkOption { type = types.ints.unsigned; default = 0; description = "Seconds to wait before activating."; };
      spinWithLock = off "Take the lock, then spin for ever.";
      bootLoaderFails = off "Installing the boot loader fails.";
      killSshd = off "Stop sshd at the end of a switch: no new connection is accepted.";
      dropNetwork = off "A unit that drops every packet but loopback's, for as long as it runs.";
      failUnit = off "A unit that fails at once.";
      failSnippet = off "A snippet of the activation script fails.";
    };
    cache = {
      cached = mkOption { type = types.ints.unsigned; default = 0; description = "Packages of the system that only the lab's binary cache has, up to 200."; };
      buildable = mkOption { type = types.ints.unsigned; default = 0; description = "Packages that the cache has, and that can be built as well, up to 8."; };
      fromSource = mkOption { type = types.ints.unsigned; default = 0; description = "Packages that are built from sources that are fetched by their hashes."; };
    };
    eval = {
      sleep = mkOption { type = types.ints.unsigned; default = 0; description = "Compute for about so many seconds on a core of 2026."; };
      allocate = mkOption { type = types.ints.unsigned; default = 0; description = "Allocate about so many MiB, all live at once."; };
      recurse = off "An option's value depends on itself.";
      again = mkOption { type = types.unspecified; default = config.test.eval.again; internal = true; };
      probe = mkOption { type = types.unspecified; default = null; internal = true; };
    };
  };
  config = {
    # Their names alone, and no profile: they are to be there, not to be used.
    environment.etc."test-cache" = lib.mkIf (cfg.cache.cached + cfg.cache.buildable + cfg.cache.fromSource > 0) {
      text = lib.concatMapStrings (package: "${package}\n") (
        map pkgs.prebuilt.cached (lib.range 1 cfg.cache.cached)
        ++ map pkgs.prebuilt.buildable (lib.range 1 cfg.cache.buildable)
        ++ map pkgs.prebuilt.fromSource (lib.range 1 cfg.cache.fromSource)
      );
    };
    systemd.services.test-drop-network = lib.mkIf cfg.stc.dropNetwork {
      description = "Drop every packet";
      wantedBy = [ "multi-user.target" ];
      path = [ pkgs.nftables ];
      serviceConfig = { Type = "oneshot"; RemainAfterExit = true; };
      script = ''
        nft add table inet test-drop-network
        nft add chain inet test-drop-network input '{ type filter hook input priority -300; policy drop; }'
        nft add chain inet test-drop-network output '{ type filter hook output priority -300; policy drop; }'
        nft add rule inet test-drop-network input iifname lo accept
        nft add rule inet test-drop-network output oifname lo accept
      '';
      preStop = "nft delete table inet test-drop-network";
    };
    systemd.services.test-fail-unit = lib.mkIf cfg.stc.failUnit {
      description = "Fail at once";
      wantedBy = [ "multi-user.target" ];
      serviceConfig.Type = "oneshot";
      script = "echo 'this unit fails on purpose' >&2; exit 1";
    };
    system.activationScripts.test-fail-snippet = lib.mkIf cfg.stc.failSnippet "false";
    # Read by the label, which every toplevel needs: the work is done before anything is built.
    test.eval.probe = lib.mkMerge [
      (lib.mkIf (cfg.eval.sleep != 0) {
        # One list for all rounds: a long computation in little memory.
        slept =
          let count = n: builtins.foldl' (sum: _: sum + 1) n thousand; in
          builtins.foldl' (sum: _: builtins.foldl' (n: _: count n) sum thousand) 0 (lib.range 1 (cfg.eval.sleep * 6));
      })
      (lib.mkIf (cfg.eval.allocate != 0) {
        # Measured: an element takes about 120 bytes while all of them live.
        allocated =
          let list = builtins.genList (i: i + 1) (cfg.eval.allocate * 8700); in
          builtins.foldl' builtins.add (builtins.length list) list;
      })
      (lib.mkIf cfg.eval.recurse { inherit (cfg.eval) again; })
    ];
    assertions = [{ assertion = builtins.deepSeq cfg.eval.probe true; message = ""; }];
  };
}
