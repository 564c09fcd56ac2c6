# The systems that machines of the lab boot with before anybody deploys to them:
# { ec2, host, forRelease } where forRelease "25.05" → { ec2, host } of images of that release.
let
  system = "x86_64-linux";
  evaluate = release: modules: (import ../nixos/lib/eval-config.nix {
    inherit system;
    modules = modules ++ [
      ({ pkgs, ... }: {
        system.nixos.release = release;
        system.stateVersion = release;
        environment.systemPackages = [ pkgs.inotify-tools ];
      })
    ];
  }).config.system.build.toplevel;
  forRelease = release: {
    ec2 = evaluate release [ ../nixos/modules/virtualisation/amazon-image.nix ];
    host = evaluate release [ ./given-host.nix ];
  };
in
forRelease (import ../lib).release // { inherit forRelease; }
