# services.httpd: Apache. The machine's own /usr/sbin/apache2 and modules under a configuration in the store.
{ config, lib, pkgs, ... }:
let
  cfg = config.services.httpd;
  inherit (lib) mkOption types;

  listenOf = host: if host.listen != [ ] then host.listen else map (ip: { inherit ip; port = 80; ssl = false; }) host.listenAddresses;
  hosts = lib.attrValues cfg.virtualHosts;
  listens = lib.naturalSort (lib.unique (lib.concatMap (host: map (l: "${if l.ip == "*" then "" else "${l.ip}:"}${toString l.port}") (listenOf host)) hosts));

  mimeTypes = pkgs.writeText "mime.types" ''
    text/html html htm
    text/css css
    text/plain txt
    text/javascript js mjs
    text/xml xml
    application/json json
    application/pdf pdf
    image/png png
    image/jpeg jpg jpeg
    image/gif gif
    image/svg+xml svg
    image/x-icon ico
  '';
  # Debian's build has log_config, logio, unixd and version inside.
  modules = lib.unique ([ "mpm_${cfg.mpm}" "authn_core" "authz_core" "authz_host" "mime" "dir" "alias" "autoindex" "negotiation" "env" "headers" "setenvif" "reqtimeout" ] ++ cfg.extraModules);

  directory = root: ''
    <Directory "${root}">
      Options Indexes FollowSymLinks
      AllowOverride None
      Require all granted
    </Directory>
  '';
  vhost = host: ''
    <VirtualHost ${lib.concatMapStringsSep " " (l: "${l.ip}:${toString l.port}") (listenOf host)}>
      ServerName ${host.hostName}
      ${lib.concatMapStrings (alias: "ServerAlias ${alias}\n") host.serverAliases}
      ServerAdmin ${if host.adminAddr != null then host.adminAddr else cfg.adminAddr}
      ErrorLog ${cfg.logDir}/error-${host.hostName}.log
      CustomLog ${cfg.logDir}/access-${host.hostName}.log ${host.logFormat}
      ${lib.optionalString (host.robotsEntries != "") "Alias /robots.txt ${pkgs.writeText "robots.txt" host.robotsEntries}"}
      ${if host.globalRedirect != null then "RedirectPermanent / ${host.globalRedirect}" else ''
        DocumentRoot "${if host.documentRoot != null then host.documentRoot else emptyRoot}"
        ${directory (if host.documentRoot != null then host.documentRoot else emptyRoot)}
      ''}
      ${lib.concatMapStrings (s: "Alias ${s.urlPath} ${s.file}\n<Files \"${s.file}\">\n  Require all granted\n</Files>\n") host.servedFiles}
      ${lib.concatMapStrings (s: "Alias ${s.urlPath} ${s.dir}/\n${directory s.dir}") host.servedDirs}
      ${host.extraConfig}
    </VirtualHost>
  '';
  emptyRoot = pkgs.runCommand "empty" { } "mkdir -p \"$out\"";

  configuration = pkgs.writeText "httpd.conf" ''
    ServerRoot ${cfg.package}
    ServerName ${config.networking.hostName}
    DefaultRuntimeDir /run/httpd/runtime
    PidFile /run/httpd/httpd.pid
    ${lib.concatMapStrings (m: "LoadModule ${m}_module ${cfg.package}/modules/mod_${m}.so\n") modules}
    ${lib.concatMapStrings (l: "Listen ${l}\n") listens}
    User ${cfg.user}
    Group ${cfg.group}
    ServerAdmin ${cfg.adminAddr}
    TypesConfig ${mimeTypes}
    DirectoryIndex index.html
    ErrorLog ${cfg.logDir}/error.log
    LogLevel notice
    LogFormat "%h %l %u %t \"%r\" %>s %b \"%{Referer}i\" \"%{User-Agent}i\"" combined
    LogFormat "%h %l %u %t \"%r\" %>s %b" common
    CustomLog ${cfg.logDir}/access.log ${cfg.logFormat}
    <Directory />
      Options FollowSymLinks
      AllowOverride None
      Require all denied
    </Directory>
    ${cfg.extraConfig}
    ${lib.concatMapStrings vhost hosts}
  '';
in
{
  imports = [
    (lib.mkRemovedOptionModule [ "services" "httpd" "documentRoot" ] "Please define a virtual host using `services.httpd.virtualHosts`.")
  ];
  options.services.httpd = {
    enable = lib.mkEnableOption "the Apache HTTP Server";
    package = lib.mkPackageOption pkgs "apacheHttpd" { };
    adminAddr = mkOption { type = types.nullOr types.str; default = null; };
    user = mkOption { type = types.str; default = "wwwrun"; };
    group = mkOption { type = types.str; default = "wwwrun"; };
    logDir = mkOption { type = types.path; default = "/var/log/httpd"; };
    logFormat = mkOption { type = types.str; default = "common"; };
    mpm = mkOption { type = types.enum [ "event" "prefork" "worker" ]; default = "event"; };
    extraModules = mkOption { type = types.listOf types.str; default = [ ]; };
    extraConfig = mkOption { type = types.lines; default = ""; };
    virtualHosts = mkOption {
      type = types.attrsOf (types.submodule ./vhost-options.nix);
      default = { localhost.documentRoot = "${cfg.package}/htdocs"; };
    };
  };
  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = cfg.adminAddr != null;
        message = "services.httpd.adminAddr must be set to an e-mail address.";
      }
      {
        assertion = lib.all (host: lib.all (l: !l.ssl) (listenOf host)) hosts;
        message = "The miniature nixpkgs serves no TLS: services.httpd.virtualHosts.<name>.listen.*.ssl must be false.";
      }
    ];
    users.users = lib.mkIf (cfg.user == "wwwrun") {
      wwwrun = { group = cfg.group; description = "Apache httpd user"; uid = 54; isSystemUser = true; };
    };
    users.groups = lib.mkIf (cfg.group == "wwwrun") { wwwrun.gid = 54; };
    environment.systemPackages = [ cfg.package ];
    systemd.tmpfiles.rules = [ "d '${cfg.logDir}' 0700 ${cfg.user} ${cfg.group}" "Z '${cfg.logDir}' - ${cfg.user} ${cfg.group}" ];
    systemd.services.httpd = {
      description = "Apache HTTPD";
      wantedBy = [ "multi-user.target" ];
      after = [ "network.target" ];
      path = [ cfg.package ];
      preStart = "mkdir -p ${cfg.logDir}";
      serviceConfig = {
        ExecStart = "@${cfg.package}/bin/httpd httpd -f ${configuration}";
        ExecStop = "${cfg.package}/bin/httpd -f ${configuration} -k graceful-stop";
        ExecReload = "${cfg.package}/bin/httpd -f ${configuration} -k graceful";
        Type = "forking";
        PIDFile = "/run/httpd/httpd.pid";
        Restart = "always";
        RestartSec = "5s";
        RuntimeDirectory = "httpd httpd/runtime";
        RuntimeDirectoryMode = "0750";
      };
    };
  };
}
