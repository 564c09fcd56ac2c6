{ pkgs, ... }:
let
  title = "A release of machines";
in
{
  services.httpd.enable = true;
  services.httpd.adminAddr = "webmaster@example.org";
  services.httpd.virtualHosts.localhost.documentRoot =
    pkgs.writeTextDir "index.html" "<html><head><title>${title}</title></head></html>";
  networking.firewall.allowedTCPPorts = [ 80 ];
}
