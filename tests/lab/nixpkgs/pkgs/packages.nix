# The packages: { lib, pkgs } → set. Versions are those of Debian 12, whose programs they link to.
{ lib, pkgs }:
let
  inherit (pkgs) fromDebian runCommand;

  # A kernel of its own path per version. The lab's machines share the host's kernel; what matters is
  # that two versions differ, as the operator compares these links to see that a reboot is needed.
  kernel = words: version: runCommand "linux-${version}" { passthru = { inherit version; modDirVersion = version; }; } ''
    mkdir -p "$out/lib/modules/${version}"
    echo "${words} ${version}" >"$out/bzImage"
    : >"$out/lib/modules/${version}/modules.order"
  '';
  kernelPackages = version: { kernel = kernel "Linux" version; };

  valgrindVersion = "3.19.0";
  valgrindHtml = ./valgrind/html;
in
{
  bash = fromDebian { pname = "bash"; version = "5.2.15"; bin = [ "bash" ]; links."bin/sh" = "/usr/bin/bash"; meta.mainProgram = "bash"; }
    // { shellPath = "/bin/bash"; };
  bashInteractive = pkgs.bash;
  runtimeShell = "/bin/bash";
  coreutils = fromDebian {
    pname = "coreutils";
    version = "9.1";
    bin = lib.splitString " " "[ arch b2sum base32 base64 basename basenc cat chcon chgrp chmod chown cksum comm cp csplit cut date dd df dir dircolors dirname du echo env expand expr factor false fmt fold groups head hostid id install join link ln logname ls md5sum mkdir mkfifo mknod mktemp mv nice nl nohup nproc numfmt od paste pathchk pinky pr printenv printf ptx pwd readlink realpath rm rmdir runcon seq sha1sum sha224sum sha256sum sha384sum sha512sum shred shuf sleep sort split stat stdbuf stty sum sync tac tail tee test timeout touch tr true truncate tsort tty uname unexpand uniq unlink users vdir wc who whoami yes";
    sbin = [ "chroot" ];
  };
  findutils = fromDebian { pname = "findutils"; version = "4.9.0"; bin = [ "find" "xargs" ]; };
  diffutils = fromDebian { pname = "diffutils"; version = "3.8"; bin = [ "cmp" "diff" "diff3" "sdiff" ]; };
  gnugrep = fromDebian { pname = "gnugrep"; version = "3.8"; bin = [ "grep" "egrep" "fgrep" ]; };
  gnused = fromDebian { pname = "gnused"; version = "4.9"; bin = [ "sed" ]; };
  gawk = fromDebian { pname = "gawk"; version = "5.2.1"; bin = [ "awk" ]; };
  gnutar = fromDebian { pname = "gnutar"; version = "1.34"; bin = [ "tar" ]; };
  gzip = fromDebian { pname = "gzip"; version = "1.12"; bin = [ "gzip" "gunzip" "zcat" ]; };
  util-linux = fromDebian {
    pname = "util-linux";
    version = "2.38.1";
    bin = [ "dmesg" "findmnt" "flock" "getopt" "ionice" "lsblk" "lscpu" "mount" "mountpoint" "nsenter" "prlimit" "setpriv" "setsid" "taskset" "umount" "unshare" ];
    sbin = [ "blkid" "runuser" "sysctl" ];
  };
  procps = fromDebian { pname = "procps"; version = "4.0.2"; bin = [ "free" "kill" "pgrep" "pkill" "ps" "top" "uptime" "watch" ]; sbin = [ "sysctl" ]; };
  systemd = fromDebian {
    pname = "systemd";
    version = "252";
    bin = [ "busctl" "hostnamectl" "journalctl" "loginctl" "networkctl" "systemctl" "systemd-analyze" "systemd-cat" "systemd-cgls" "systemd-escape" "systemd-id128" "systemd-mount" "systemd-notify" "systemd-path" "systemd-run" "systemd-tmpfiles" "timedatectl" ];
    sbin = [ "halt" "poweroff" "reboot" "shutdown" ];
    links."lib/systemd/systemd" = "/usr/lib/systemd/systemd";
  };
  shadow = fromDebian { pname = "shadow"; version = "4.13"; bin = [ "passwd" ]; sbin = [ "groupadd" "groupdel" "groupmod" "useradd" "userdel" "usermod" ]; };
  iproute2 = fromDebian { pname = "iproute2"; version = "6.1.0"; bin = [ "ip" "ss" ]; sbin = [ "bridge" "tc" ]; };
  iputils = fromDebian { pname = "iputils"; version = "20221126"; bin = [ "ping" ]; };
  nftables = fromDebian { pname = "nftables"; version = "1.0.6"; sbin = [ "nft" ]; meta.mainProgram = "nft"; };
  curl = fromDebian { pname = "curl"; version = "7.88.1"; bin = [ "curl" ]; };
  inotify-tools = fromDebian { pname = "inotify-tools"; version = "3.22.6.0"; bin = [ "inotifywait" "inotifywatch" ]; };
  openssh = fromDebian { pname = "openssh"; version = "9.2p1"; bin = [ "scp" "sftp" "ssh" "ssh-add" "ssh-agent" "ssh-keygen" "ssh-keyscan" ]; sbin = [ "sshd" ]; };
  nix = fromDebian {
    pname = "nix";
    version = "2.8.0";
    bin = [ "nix" "nix-build" "nix-channel" "nix-collect-garbage" "nix-copy-closure" "nix-daemon" "nix-env" "nix-hash" "nix-instantiate" "nix-prefetch-url" "nix-shell" "nix-store" ];
  };
  cacert = fromDebian { pname = "nss-cacert"; version = "2023"; links."etc/ssl/certs/ca-bundle.crt" = "/etc/ssl/certs/ca-certificates.crt"; };

  apacheHttpd = fromDebian {
    pname = "apache-httpd";
    version = "2.4";
    sbin = [ "apachectl" ];
    links = {
      "bin/httpd" = "/usr/sbin/apache2";
      "modules" = "/usr/lib/apache2/modules";
    };
    meta.mainProgram = "httpd";
  };

  # Several outputs as in nixpkgs; `doc` is the real HTML manual, which assemble.sh brings.
  valgrind = fromDebian { pname = "valgrind"; version = valgrindVersion; bin = [ "valgrind" ]; } // {
    doc = runCommand "valgrind-${valgrindVersion}-doc"
      {
        src =
          if builtins.pathExists valgrindHtml then builtins.path { name = "valgrind-${valgrindVersion}-html"; path = valgrindHtml; }
          else throw "valgrind's documentation is missing: this tree was not made by tests/lab/nixpkgs/assemble.sh";
      } ''
      mkdir -p "$out/share/doc/valgrind"
      cp -r "$src" "$out/share/doc/valgrind/html"
    '';
  };

  hello = pkgs.writeShellScriptBin "hello" "echo 'Hello, world!'" // { version = "2.12"; };

  # What comes from elsewhere, for tests: see there.
  prebuilt = import ./prebuilt.nix { inherit pkgs; };

  linuxPackages = kernelPackages "6.12.60";
  linuxPackages_latest = kernelPackages "6.17.10";
  # One that panics as it comes up: the machine hangs, or is reset where `panic=1` is among boot.kernelParams.
  linuxPackages_broken = { kernel = kernel "broken" "6.18.0"; };
}
