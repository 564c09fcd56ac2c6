#!/bin/bash
# switch-to-configuration check|switch|boot|test|dry-activate: makes $TOPLEVEL the running system.
#
#   lock → pre-switch checks → boot loader (switch, boot) → stop → activate → daemon-reexec → daemon-reload
#        → user managers → tmpfiles → reload → restart → start → look for failed units
#
# Order, list files and exits are those of NixOS (NixOS manual, "What happens during a system switch?"). There are three
# of them, and $TEST_KIND says which this is:
#
#   ng          since 24.11, Rust: pkgs/by-name/sw/switch-to-configuration-ng/
#   perl        2021 to 25.05: nixos/modules/system/activation/switch-to-configuration.pl
#   perl-2020   the same file of July 2020
#
#                                ng                  perl                perl-2020
#   lists of what is left to do  /run/nixos          /run/nixos          /run/systemd
#   lock                         refuses with 11     waits               none
#   `check`, pre-switch checks   yes                 no                  no
#   NIXOS_ACTION                 set                 set                 not set
#   activation-*-list            read                read                not read
#   says that `activate` failed  yes                 no                  no
#   a unit to be reloaded that   is started; the empty list stays        cannot be reloaded: 4
#     has stopped
#   X-Reload-Triggers            reload              reload              part of the unit like any other line
#   a stop that failed           4                   nothing             nothing
#   tmpfiles that failed         nothing             3                   3
#   where it gives up            1                   255                 255
#
# What a cut run still had to do stays in {start,restart,reload}-list, and the next run of its kind takes it up.
#
# Exit: 0 done; 1 usage, a pre-switch check, the boot loader; 2 a snippet of `activate` failed; 3 daemon-reload or
# tmpfiles failed; 4 a unit is failed; 11 another run holds the lock; 100 the new init is incompatible.
set -u
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL=C
action=${1-}
running=/run/current-system
kind=${TEST_KIND-ng}
lists=/run/nixos
[ "$kind" != perl-2020 ] || lists=/run/systemd
is_ng() { [ "$kind" = ng ]; }
is_of_2020() { [ "$kind" = perl-2020 ]; }

say() { printf '%s\n' "$*" >&2; }
# An error that nobody expected: 255 is that of Perl's `die`.
give_up() { say "$1"; if is_ng; then exit 1; else exit 255; fi; }
# A test's wish to be stuck here, until it is killed, or to end.
pass_through() {
  if [ "${TEST_HANG_AT-}" = "$1" ]; then say "hanging at $1"; sleep infinity; fi
  [ "${TEST_GIVE_UP_AT-}" != "$1" ] || give_up "giving up at $1"
}

is_ng || [ "$action" != check ] || action=unknown
case $action in
  check | switch | boot | test | dry-activate) ;;
  *)
    say "Usage: $0 [check|switch|boot|test|dry-activate]
check:        run pre-switch checks and exit
switch:       make the configuration the boot default and activate now
boot:         make the configuration the boot default
test:         activate the configuration, but don't make it the boot default
dry-activate: show what would be done if this configuration were activated"
    exit 1
    ;;
esac
if [ "$(id -u)" != 0 ]; then
  say "This script must be run as root"
  exit 1
fi
if [ ! -e /etc/NIXOS ] && ! grep -qx 'ID="\?nixos"\?' /etc/os-release 2>/dev/null; then
  give_up "This is not a NixOS installation!"
fi

mkdir -p "$lists"
# Descriptor 9 holds the lock; what may outlive this run is started without it.
if is_of_2020; then
  exec 9>/dev/null
else
  exec 9>>"$lists/switch-to-configuration.lock"
fi
if is_ng; then
  if ! flock -n 9; then
    say "Could not acquire lock"
    exit 11
  fi
elif ! is_of_2020; then
  flock 9
fi
if [ -n "${TEST_SPIN_WITH_LOCK-}" ]; then
  say "spinning with the lock"
  while :; do :; done
fi

pass_through check
if is_ng && [ "${NIXOS_NO_CHECK-}" != 1 ] && ! "$PRE_SWITCH_CHECK" "$TOPLEVEL" "$action" 9>&-; then
  say "Pre-switch checks failed"
  exit 1
fi
[ "$action" != check ] || exit 0
case ${TEST_EXIT-} in 1 | 11) exit "$TEST_EXIT" ;; esac

if [ "$action" = switch ] || [ "$action" = boot ]; then
  if ! "$INSTALL_BOOTLOADER" "$TOPLEVEL" 9>&-; then
    say "Failed to install bootloader"
    exit 1
  fi
fi
# NixOS syncs the store here. A lab machine's power cut ends its processes, not the kernel that holds its
# disk, and a sync would wait for every other lab on that disk.
[ "$action" != boot ] || exit 0

if ! cmp -s "$running/init-interface-version" "$TOPLEVEL/init-interface-version" || [ "${TEST_EXIT-}" = 100 ]; then
  say "Warning: the new NixOS configuration has an ‘init’ that is incompatible with the
current configuration. The new configuration won't take effect until
you reboot the system."
  exit 100
fi

old_units=$running/etc/systemd/system
new_units=$TOPLEVEL/etc/systemd/system
dry=
[ "$action" != dry-activate ] || dry=1
is_of_2020 || export NIXOS_ACTION=$action
[ -n "$dry" ] || logger -t nixos -p daemon.info "switching to system configuration $TOPLEVEL" 2>/dev/null || true

declare -A to_stop=() to_skip=() to_reload=() to_restart=() to_start=() shown_start=() silent=()

# take LIST-FILE SET: what an earlier, cut run left to do.
take() {
  local -n set=$2
  local unit
  [ -e "$lists/$1" ] || return 0
  while read -r unit; do [ -z "$unit" ] || set[$unit]=1; done <"$lists/$1"
}
# plan SET LIST-FILE UNIT: remember it here and, before anything is done, on disk.
plan() {
  local -n planned=$1
  planned[$3]=1
  [ -n "$dry" ] || printf '%s\n' "$3" >>"$lists/$2"
}
sorted() { printf '%s\n' "$@" | sort -u; }
joined() { sorted "$@" | paste -sd, | sed 's/,/, /g'; }

take start-list to_start
take restart-list to_restart
take reload-list to_reload

# says UNIT-FILE KEY DEFAULT: a yes or no of systemd's syntax. Without a process: it is asked for every target.
says() {
  local line value=$3
  while IFS= read -r line; do
    case $line in "$2="*) value=${line#*=} ;; esac
  done <"$1"
  case $value in 1 | yes | true | on) return 0 ;; *) return 1 ;; esac
}
# What matters of a unit file, without the triggers that only ask for a reload.
substance() { if is_of_2020; then cat "$1"; else grep -v -e '^X-Reload-Triggers=' "$1"; fi; }
triggers() { grep -e '^X-Reload-Triggers=' "$1"; }

# A unit file has changed while its unit is active: what is to be done?
changed() {
  local unit=$1 file=$new_units/$2
  case $unit in
    sysinit.target | basic.target | multi-user.target | graphical.target | *.path | *.slice) return ;;
    *.mount) plan to_reload reload-list "$unit"; return ;;
  esac
  if [ "$(substance "$old_units/$2")" = "$(substance "$file")" ] && [ "$(triggers "$old_units/$2")" != "$(triggers "$file")" ] ||
    says "$file" X-ReloadIfChanged no; then
    [ -n "${to_restart[$unit]-}" ] || plan to_reload reload-list "$unit"
  elif ! says "$file" X-RestartIfChanged yes || says "$file" RefuseManualStop no || says "$file" X-OnlyManualStart no; then
    to_skip[$unit]=1
  elif ! says "$file" X-StopIfChanged yes; then
    plan to_restart restart-list "$unit"
    unset "to_reload[$unit]"
  else
    # Stopped by its old file now, started by the new one later.
    to_stop[$unit]=1
    plan to_start start-list "$unit"
    shown_start[$unit]=1
    unset "to_reload[$unit]"
    # A socket that starts this service has to let go of it first.
    local socket=${unit%.service}.socket
    if [ -e "$new_units/$socket" ] && systemctl -q is-active "$socket"; then
      to_stop[$socket]=1
      plan to_start start-list "$socket"
    fi
  fi
}

while read -r unit _; do
  file=$unit
  if [ ! -e "$old_units/$file" ]; then
    # An instance shares the file of its template.
    case $unit in *@*.*) file=${unit%%@*}@.${unit##*.} ;; esac
  fi
  old=$old_units/$file
  new=$new_units/$file
  if [ -e "$old" ]; then
    if [ ! -e "$new" ] || [ "$(readlink -f "$new")" = /dev/null ]; then
      if [ "$(readlink -f "$old")" != /dev/null ] && says "$old" X-StopOnRemoval yes; then to_stop[$unit]=1; fi
    elif [ "$(readlink -f "$old")" = /dev/null ]; then
      :
    elif ! cmp -s "$old" "$new"; then
      changed "$unit" "$file"
    fi
  fi
  # Starting the active targets again starts what they newly want, and what was stopped below them.
  case $unit in
    suspend.target | hibernate.target | hybrid-sleep.target | suspend-then-hibernate.target) ;;
    *.target)
      if ! { [ -e "$new" ] && { says "$new" RefuseManualStart no || says "$new" X-OnlyManualStart no; }; } &&
        ! { [ -e "/usr/lib/systemd/system/$unit" ] && says "/usr/lib/systemd/system/$unit" RefuseManualStart no; }; then
        if [ ! -e "$old" ] || [ -e "$new" ]; then plan to_start start-list "$unit"; fi
      fi
      # What is ordered after the target is started again only after it.
      if [ -e "$new" ] && says "$new" X-StopOnReconfiguration no; then
        to_stop[$unit]=1
        silent[$unit]=1
      fi
      ;;
  esac
done < <(systemctl list-units --all --full --plain --no-legend --state=active,activating,reloading,deactivating)

restart_systemd=
if [ "$(readlink -f /etc/systemd/system.conf)" != "$(readlink -f "$TOPLEVEL/etc/systemd/system.conf")" ] &&
  { [ -e "$TOPLEVEL/etc/systemd/system.conf" ] || [ -e "$running/etc/systemd/system.conf" ]; }; then
  restart_systemd=1
fi

if [ -n "$dry" ]; then
  [ ${#to_stop[@]} = 0 ] || say "would stop the following units: $(joined "${!to_stop[@]}")"
  [ ${#to_skip[@]} = 0 ] || say "would NOT stop the following changed units: $(joined "${!to_skip[@]}")"
  say "would activate the configuration..."
  is_of_2020 || "$TOPLEVEL/dry-activate" "$TOPLEVEL" 9>&- || true
  [ -z "$restart_systemd" ] || say "would restart systemd"
  [ ${#to_reload[@]} = 0 ] || say "would reload the following units: $(joined "${!to_reload[@]}")"
  [ ${#to_restart[@]} = 0 ] || say "would restart the following units: $(joined "${!to_restart[@]}")"
  [ ${#shown_start[@]} = 0 ] || say "would start the following units: $(joined "${!shown_start[@]}")"
  exit 0
fi

before=$(systemctl list-units --full --plain --no-legend --state=active | cut -d' ' -f1 | sort)
status=0
stop_failed=

pass_through stop
if [ ${#to_stop[@]} != 0 ]; then
  shown=()
  for unit in "${!to_stop[@]}"; do [ -n "${silent[$unit]-}" ] || shown+=("$unit"); done
  [ ${#shown[@]} = 0 ] || say "stopping the following units: $(joined "${shown[@]}")"
  # A job that did not end in time, not a unit that failed as it stopped.
  systemctl stop -- "${!to_stop[@]}" 9>&- || stop_failed=1
fi
[ ${#to_skip[@]} = 0 ] || say "NOT restarting the following changed units: $(joined "${!to_skip[@]}")"

pass_through activate
[ -z "${TEST_SLOW-}" ] || sleep "$TEST_SLOW"
say "activating the configuration..."
if ! "$TOPLEVEL/activate" "$TOPLEVEL" 9>&-; then
  ! is_ng || say "Failed to run activate script"
  status=2
fi
pass_through activated

# Snippets may ask for more.
is_of_2020 || for pair in activation-restart-list:to_restart:restart-list activation-reload-list:to_reload:reload-list; do
  IFS=: read -r file set list <<<"$pair"
  [ -e "$lists/$file" ] || continue
  while read -r unit; do [ -z "$unit" ] || ! systemctl -q is-active "$unit" || plan "$set" "$list" "$unit"; done <"$lists/$file"
  rm -f "$lists/$file"
done

if [ -n "$restart_systemd" ]; then
  say "restarting systemd..."
  systemctl daemon-reexec || status=2
fi
systemctl reset-failed
if ! timeout 180 systemctl daemon-reload; then
  say "Failed to reload systemd"
  status=3
fi
# Whoever is logged in has a manager of units of his own. What becomes of them changes no exit.
while read -r manager _; do
  user=${manager#user@}
  user=${user%.service}
  say "reloading user units for $(id -un "$user")..."
  setpriv --reuid="$user" --regid="$(id -g "$user")" --clear-groups env -i XDG_RUNTIME_DIR="/run/user/$user" \
    PATH="$PATH" systemctl --user daemon-reexec 9>&- || true
done < <(systemctl list-units --full --plain --no-legend --state=active 'user@*.service')
say "setting up tmpfiles"
systemd-tmpfiles --create --exclude-prefix=/dev /etc/tmpfiles.d/00-nixos.conf || is_ng || status=3

pass_through reload
if [ ${#to_reload[@]} != 0 ] && ! is_of_2020; then
  # One that has stopped meanwhile is started instead. It is crossed out of the list, which stays, empty.
  for unit in "${!to_reload[@]}"; do
    if ! systemctl -q is-active "$unit"; then
      plan to_start start-list "$unit"
      unset "to_reload[$unit]"
      left=$(grep -vxF -- "$unit" "$lists/reload-list")
      printf '%s' "${left:+$left
}" >"$lists/reload-list"
    fi
  done
fi
if [ ${#to_reload[@]} != 0 ]; then
  say "reloading the following units: $(joined "${!to_reload[@]}")"
  systemctl reload -- "${!to_reload[@]}" 9>&- || status=4
  rm -f "$lists/reload-list"
fi

pass_through restart
if [ ${#to_restart[@]} != 0 ]; then
  say "restarting the following units: $(joined "${!to_restart[@]}")"
  systemctl restart -- "${!to_restart[@]}" 9>&- || status=4
  rm -f "$lists/restart-list"
fi

pass_through start
if [ ${#to_start[@]} != 0 ]; then
  [ ${#shown_start[@]} = 0 ] || say "starting the following units: $(joined "${!shown_start[@]}")"
  systemctl start -- "${!to_start[@]}" 9>&- || status=4
fi
rm -f "$lists/start-list"
if is_ng && [ -n "$stop_failed" ]; then
  say "Failed to stop units"
  status=4
fi

if [ -n "${TEST_KILL_SSHD-}" ]; then systemctl stop sshd.service; fi

after=$(systemctl list-units --full --plain --no-legend --state=active | cut -d' ' -f1 | sort)
new=$(comm -13 <(printf '%s\n' "$before") <(printf '%s\n' "$after") | grep -v -e '\.scope$' -e '\.device$' -e '^run-' || true)
[ -z "$new" ] || say "the following new units were started: $(joined $new)"

# Failed, or waiting for the next try after a failure.
failed=$(systemctl list-units --full --plain --no-legend --state=failed,auto-restart | cut -d' ' -f1 | sort)
if [ -n "$failed" ]; then
  say "warning: the following units failed: $(joined $failed)"
  systemctl status --no-pager --full -- $failed >&2 || true
  status=4
fi

if [ "$status" = 0 ]; then
  logger -t nixos -p daemon.info "finished switching to system configuration $TOPLEVEL" 2>/dev/null || true
else
  logger -t nixos -p daemon.err "switching to system configuration $TOPLEVEL failed (status $status)" 2>/dev/null || true
fi
exit "${TEST_EXIT:-$status}"
