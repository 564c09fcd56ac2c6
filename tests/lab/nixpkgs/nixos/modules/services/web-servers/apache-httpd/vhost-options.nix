# Options of one virtual host.
{ lib, name, ... }:
let
  inherit (lib) mkOption types;
  listen = types.submodule {
    options = {
      ip = mkOption { type = types.str; default = "*"; };
      port = mkOption { type = types.port; default = 80; };
      ssl = mkOption { type = types.bool; default = false; };
    };
  };
  served = key: types.submodule {
    options = {
      urlPath = mkOption { type = types.str; };
      ${key} = mkOption { type = types.path; };
    };
  };
in
{
  options = {
    hostName = mkOption { type = types.str; default = name; };
    serverAliases = mkOption { type = types.listOf types.str; default = [ ]; };
    listen = mkOption { type = types.listOf listen; default = [ ]; };
    listenAddresses = mkOption { type = types.nonEmptyListOf types.str; default = [ "*" ]; };
    adminAddr = mkOption { type = types.nullOr types.str; default = null; };
    documentRoot = mkOption { type = types.nullOr types.path; default = null; };
    servedDirs = mkOption { type = types.listOf (served "dir"); default = [ ]; };
    servedFiles = mkOption { type = types.listOf (served "file"); default = [ ]; };
    globalRedirect = mkOption { type = types.nullOr types.str; default = null; };
    logFormat = mkOption { type = types.str; default = "common"; };
    robotsEntries = mkOption { type = types.lines; default = ""; };
    extraConfig = mkOption { type = types.lines; default = ""; };
  };
}
