# A web server with valgrind's manual. Nothing here says where it runs: that is what targets/ is for.
{ pkgs, ... }:
{
  services.httpd.enable = true;
  services.httpd.adminAddr = "webmaster@example.org";
  services.httpd.virtualHosts.localhost.documentRoot = "${pkgs.valgrind.doc}/share/doc/valgrind/html";
  networking.firewall.allowedTCPPorts = [ 80 ];
}
