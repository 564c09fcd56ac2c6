# PostgreSQL with one database, whose owner logs in with the password of the key.
{ config, ... }:
{
  # The volume `data` of nixdeployment.yaml: formatted while it is empty.
  fileSystems."/var/lib/postgresql" = {
    device = "/dev/sdf";
    fsType = "ext4";
    autoFormat = true;
  };

  services.postgresql = {
    enable = true;
    enableTCPIP = true;
    ensureDatabases = [ "shop" ];
    ensureUsers = [ { name = "shop"; } ];
    # From which addresses is said once, by the security group.
    authentication = "host shop shop all scram-sha-256";
  };
  networking.firewall.allowedTCPPorts = [ 5432 ];

  # Started anew when the Secret has another password (restartUnits in nixdeployment.yaml).
  users.users.postgres.extraGroups = [ "keys" ];
  systemd.services.shop-role = {
    wantedBy = [ "multi-user.target" ];
    requires = [ "postgresql.service" "shop-password-key.service" ];
    # NixOS of today makes databases and users in postgresql-setup.service, earlier ones in postgresql.service itself.
    after = [ "postgresql.service" "postgresql-setup.service" "shop-password-key.service" ];
    path = [ config.services.postgresql.package ];
    serviceConfig = {
      Type = "oneshot";
      RemainAfterExit = true;
      User = "postgres";
    };
    # psql reads the file itself, and the server logs no failed statement: the password is in no argument and no log.
    script = ''
      test -s ${config.deployment.keys.shop-password.path}
      psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --dbname=shop <<'SQL'
        \set password `cat ${config.deployment.keys.shop-password.path}`
        SET log_min_error_statement = panic;
        SET password_encryption = 'scram-sha-256';
        ALTER ROLE shop PASSWORD :'password';
        ALTER DATABASE shop OWNER TO shop;
      SQL
    '';
  };
}
