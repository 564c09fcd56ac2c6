#!/bin/sh
# What the operator has a host do: `sh agent <command> [<activation id>]`. POSIX sh; needs coreutils, grep, sed, awk,
# find, cmp, getent, util-linux' flock, findmnt, lsblk, blkid, sfdisk and partx (all of these are in NixOS' required
# packages, nixos/modules/config/system-path.nix),
# systemd and Nix.
#
# Commands of the operator, over SSH; each may be repeated:
#   facts                    one look, as `key value` lines (`facts.py` reads them)
#   watch                    a line for each change of what `facts` tells, as far as the kernel and the journal say so,
#                            until its input ends; nothing where there is no inotifywait
#   daemon                   <- trusted public key; then the Nix daemon's protocol on stdin and stdout
#   own | disown             <- cluster, uid, name, and for `own` cluster and uid of the owner to replace, or empty;
#                            `yes` if the host is now this owner's (is not any more), else `no`
#   stage-host-key           a new host key beside the one that is shown; its public half, `<type> <base64>`
#   install-host-key         <- public half; `yes` once that is the key that sshd shows, `no` if no such one was staged
#   build BUILD              <- derivation, toplevel, limit and silence limit in seconds; `built`, `building`, or
#                            `missing` if the derivation is not in the store
#   build-look BUILD         <- offset; how it stands as `key value` lines, then its log from there on; `none` if there
#                            is no such build
#   build-stop               ends the build
#   keys                     <- lines `put <path> <mode> <user> <group> <digest> <units>` and `drop <path>`, then the
#                            content of each put
#   disk-users               <- volume id, device (/dev/sdf); where it is mounted, a line each
#   grow-root                the partition and the file system of / become as large as their disk
#   grow-volume              <- as disk-users; partitions and file systems of the volume do, those of them that are
#                            mounted; `unmounted` for each other one
#   store-room               block size, blocks, free blocks, inodes and free inodes of the file system of /nix/store; a
#                            file system that makes inodes as it needs them has none and 0
#   root-next                <- toplevel; `yes` if its closure is valid and now rooted, else `no`
#   dry-activate             <- toplevel; the exit status of its dry run, a newline, its output
#   claim ID                 <- toplevel, previous, timeout and confirm timeout in seconds, mode (switch, test, boot,
#                            restart),
#                            whether it returns by itself (yes, no); `yes` or `no`
#   activate ID              arms the dead man's timer, if it returns, then starts the activation's unit
#   hold ID                  <- seconds; gives the dead man that long from now on; `yes` or `no`
#   probe                    <- limit in seconds, kind, what the kind takes; one line that says why it fails, or nothing
#   confirm ID               `yes` or `no`
#   commit ID | adopt        adopt <- toplevel
#   remove-generations       <- numbers of the system profile; those that nothing runs or returns to go, and with them
#                            their boot entries
#   restart ID               makes it what the machine boots next, once where the boot loader can do that, and restarts
#                            the machine
#   rollback ID              starts the unit that returns to the previous system
#   log ID                   the last 16 KiB of the activation's output
# Commands of units on the host:
#   begin ID, finish ID      before and after switch-to-configuration, in nixops-activate-ID.service
#   expire ID                the dead man's timers, nixops-deadman-ID, nixops-confirm-ID and nixops-hold-ID
#   return ID                nixops-rollback-ID.service
#   guard                    nixops-guard.service of the guest module, at the first boot of a system
#   install ID, install-adopted TOPLEVEL, install-profile   nixops-commit-….service
#   build-end BUILD          after the build, in nixops-build-BUILD.service
#
# Arguments (<-) come on stdin, each as its length in bytes, a newline, the bytes, a newline: a connection that is cut
# never makes a shorter argument of a longer one. Only ids and, between units, store paths are in argv.
#
# Exit: 0 done; 20 refused, nothing was changed (stderr says why); 64 malformed request; anything else: a tool failed.
#
# State is kept in /var/lib/nixops/activation:
#   <id>/agent, path, request     this script, the PATH and the request as of the claim: the host needs nothing else
#   <id>/state.<state>            an empty file. rename(2) changes the state, so one of two racing parties loses
#   <id>/failed-before            the units that were failed at the claim, one a line
#   <id>/left-in                  the boot that is left by another one, to return from a restart
#   <id>/held                     exists once it was reached again after the switch, and waits for its health
#   <id>/result, log, commit.log
#   active -> <id>                the claim. It goes when the state is committed, rolledback or failed
# and, of the one build that there is at a time, in /var/lib/nixops/build
#   <hash of the derivation>/agent, request, state.<state>, log, out, result
# and, of files with secrets, in /var/lib/nixops/keys, a line for each, which is there before the file and goes after it:
#   <path> <mode> <user> <group> <digest> <state> <boot id>
# The digest is the operator's name for the content and says nothing to others; `-`: the file may be there or not. State:
#   whole, or unowned: user or group did not exist; or owed: the content was changed, and units wait for their restart
# Killed anywhere, a repeated call or the dead man's timer goes on from there: each step is either one rename, or may be
# done twice, and what guards a step (timer, mark, root) is made before it and removed after it.
set -eu
LC_ALL=C
export LC_ALL
umask 022

HOME_DIR=/var/lib/nixops
ACTIVATIONS=$HOME_DIR/activation
BUILDS=$HOME_DIR/build
ROOTS=/nix/var/nix/gcroots/nixops
PROFILE=/nix/var/nix/profiles/system
GRUB=/boot/grub
ONCE=nixops_once=yes # in GRUB's environment: we chose a system for one boot, and it has not become the boot entry yet
OWNER=$HOME_DIR/owner # one line, `<cluster> <uid> <namespace>/<name>`; to remove it lets anybody have the host
KEYS=$HOME_DIR/keys
HOST_KEY=/etc/ssh/ssh_host_ed25519_key # where NixOS' image for EC2 puts the one of user data
UNSURE=$HOME_DIR/boot-entry-unsure # exists while profile and boot entry are being moved
FALLBACK_PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
PATH=/run/current-system/sw/bin:/nix/var/nix/profiles/default/bin:$FALLBACK_PATH
export PATH

# Of switch-to-configuration; in /run/systemd up to 2021.
UNIT_LISTS='/run/nixos/start-list /run/nixos/restart-list /run/nixos/reload-list
    /run/systemd/start-list /run/systemd/restart-list /run/systemd/reload-list'
KEPT_ACTIVATIONS=5
LOG_PART=524288        # bytes of a build's log in one answer
DRY_SECONDS=100        # the operator waits 120 s
LONGEST_HOLD=600       # s from the switch to good health
COMMIT_SECONDS=280     # the operator waits 300 s
STOP_SECONDS=30        # from SIGTERM to SIGKILL; also the limit of `finish`
DEADMAN_MARGIN=60      # above timeout and confirm timeout: a slow start of the unit is no reason to return
ROLLBACK_MARGIN=120    # above the request's timeout: stopping the activation's unit comes first
KEY_BYTES=1048576      # more than a Secret holds is no key: not worth reading at each look
GUARD_MARGIN=240       # above the confirm timeout: an operator that waits longer and longer between its knocks
UNIT_STARTS=10         # somebody else's switch-to-configuration may hold the lock

# Extended regular expressions. No path has a blank, a wildcard, or a part `.` or `..`.
KEY_PATH='(/[.]?[A-Za-z0-9_@+=:,-][A-Za-z0-9._@+=:,-]*)+'
ACCOUNT='[A-Za-z0-9_][A-Za-z0-9_.-]*'
UNIT='[A-Za-z0-9][A-Za-z0-9:_.@\-]*'

fail() { printf '%s\n' "$2" >&2; exit "$1"; }

# --- arguments

# Reads one argument from stdin into $argument. `read` and `head -c` take no byte too many from a pipe.
take() {
    read -r length || fail 64 "no argument on stdin"
    case $length in '' | *[!0-9]* | ??????*) fail 64 "malformed length" ;; esac
    argument=$(head -c "$length"; printf x)
    argument=${argument%x}
    [ "${#argument}" -eq "$length" ] || fail 64 "stdin was cut"
    read -r rest || fail 64 "stdin was cut"
    [ -z "$rest" ] || fail 64 "argument longer than its length"
}

# The same into a new file, whatever bytes they are. It stays open as 8.
take_file() {
    read -r length || fail 64 "no file on stdin"
    case $length in '' | *[!0-9]* | ????????*) fail 64 "malformed length" ;; esac
    rm -f "$1"
    set -C
    exec 8>"$1"
    set +C
    head -c "$length" >&8
    [ "$(stat -L -c %s /proc/self/fd/8)" -eq "$length" ] || fail 64 "stdin was cut"
    read -r rest || fail 64 "stdin was cut"
    [ -z "$rest" ] || fail 64 "file longer than its length"
}

check_store_path() {
    case $1 in
        *[!A-Za-z0-9+._?=/-]* | /nix/store/*/*) ;;
        /nix/store/????????????????????????????????-?*) return 0 ;;
    esac
    fail 64 "not a store path"
}

check_seconds() {
    case $1 in '' | *[!0-9]* | ???????*) fail 64 "not a number of seconds" ;; esac
}

check_offset() {
    case $1 in '' | *[!0-9]* | ????????????????*) fail 64 "not an offset" ;; esac
}

check_word() {
    case $1 in '' | *[!A-Za-z0-9._/-]*) fail 64 "malformed owner" ;; esac
    [ "${#1}" -le 320 ] || fail 64 "malformed owner"
}

# `<first 8 characters of the toplevel's hash>-<attempt>`; sets $id and $dir.
check_id() {
    case $1 in
        *[!a-z0-9-]*) fail 64 "malformed id" ;;
        ????????-[0-9]*) case ${1#????????-} in *[!0-9]* | ??????????*) fail 64 "malformed id" ;; esac ;;
        *) fail 64 "malformed id" ;;
    esac
    id=$1
    dir=$ACTIVATIONS/$id
}

# The hash part of a derivation's path; sets $id and $dir.
check_build_id() {
    case $1 in
        *[!0-9a-z]*) fail 64 "malformed id" ;;
        ????????????????????????????????) ;;
        *) fail 64 "malformed id" ;;
    esac
    id=$1
    dir=$BUILDS/$id
}

# --- what is there

boot_id() { read -r line </proc/sys/kernel/random/boot_id && printf '%s\n' "$line"; }

# The store path behind a link, or nothing.
system_behind() {
    path=$(readlink -e "$1") || return 0
    case $path in /nix/store/*) printf '%s\n' "$path" ;; esac
}

# Sets $toplevel, $previous, $boot, $timeout, $confirm_timeout, $mode, $returns from <dir>/request.
load_request() {
    toplevel='' previous='' boot='' timeout='' confirm_timeout='' mode=switch returns=yes
    [ -f "$dir/request" ] || fail 20 "no activation $id on this host"
    while read -r key value; do
        case $key in
            toplevel) toplevel=$value ;;
            previous) previous=$value ;;
            boot-id) boot=$value ;;
            timeout) timeout=$value ;;
            confirm-timeout) confirm_timeout=$value ;;
            mode) mode=$value ;;
            returns) returns=$value ;;
        esac
    done <"$dir/request"
    [ -n "$toplevel" ] && [ -n "$previous" ] && [ -n "$boot" ] && [ -n "$timeout" ] && [ -n "$confirm_timeout" ] ||
        fail 20 "the request of activation $id is damaged"
}

# Commands of units use the programs of the system from before the activation.
load_path() {
    read -r PATH <"$dir/path" || fail 20 "no activation $id on this host"
    export PATH
}

# The one that goes with $PATH: /bin/sh is the new system's as soon as it is activated, and may be anything.
shell() { command -v sh; }

# Prints the state of <dir>; nothing if there is none. A rename may fall between listing and testing: then once more.
state() {
    for look in 1 2 3 4 5; do
        for file in "$dir"/state.*; do
            if [ -e "$file" ]; then
                printf '%s\n' "${file##*/state.}"
                return 0
            fi
        done
    done
}

move() { mv -T "$dir/state.$1" "$dir/state.$2" 2>/dev/null; }

active_id() { readlink "$ACTIVATIONS/active" || true; }

is_active() {
    active_state=$(systemctl show --property=ActiveState --value "$1") || fail 1 "systemd does not answer"
    case $active_state in
        active | activating | deactivating | reloading) return 0 ;;
    esac
    return 1
}

# --- small changes

stop_timers() {
    systemctl stop "nixops-deadman-$1.timer" "nixops-confirm-$1.timer" "nixops-hold-$1.timer" 2>/dev/null || true
}

# Under the lock of `claim`: between look and removal the link may become another's.
release() {
    (
        flock 9
        [ "$(active_id)" != "$id" ] || rm -f "$ACTIVATIONS/active"
    ) 9>"$ACTIVATIONS/lock"
}

# A link that is either the old or the new one, never absent.
point() {
    mkdir -p "${1%/*}"
    ln -s "$2" "$1.new.$$"
    mv -T "$1.new.$$" "$1"
}

# Whether activation $1 can be told of. What somebody has damaged is none: it would keep everybody from the machine.
is_whole() (
    check_id "$1"
    load_request
    check_store_path "$toplevel"
    check_store_path "$previous"
    case $(state) in
        prepared | switching | switched | confirmed | committed | rebooting | rollingback | rolledback | failed) ;;
        *) exit 1 ;;
    esac
) 2>/dev/null

# What an ended activation no longer needs: also what a killed step has left.
tidy() {
    case $(state) in
        committed | rolledback | failed)
            stop_timers "$id"
            release
            ;;
    esac
}

run_unit() {
    unit=$1
    shift
    systemd-run --quiet --unit="$unit" --collect --service-type=exec --setenv=PATH="$PATH" \
        -p KillMode=control-group -p TimeoutStopSec="$STOP_SECONDS" "$@"
}

start_rollback() {
    if is_active "nixops-rollback-$id.service"; then
        return 0
    fi
    run_unit "nixops-rollback-$id" --no-block -p RuntimeMaxSec=$((timeout + ROLLBACK_MARGIN)) \
        -p Restart=on-failure -p RestartSec=3 -p StartLimitBurst="$UNIT_STARTS" -p StartLimitIntervalSec=infinity \
        -p StandardOutput="append:$dir/log" -p StandardError="append:$dir/log" "$(shell)" "$dir/agent" return "$id" ||
        is_active "nixops-rollback-$id.service"
}

# Timer $1 runs `expire` in $2 seconds. A killed `expire` is started again.
arm() {
    if is_active "$1.timer"; then
        return 0
    fi
    systemd-run --quiet --unit="$1" --collect --on-active="$2s" --timer-property=AccuracySec=1s \
        --setenv=PATH="$PATH" -p Restart=on-failure -p RestartSec=3 \
        -p StartLimitBurst="$UNIT_STARTS" -p StartLimitIntervalSec=infinity "$(shell)" "$dir/agent" expire "$id" ||
        is_active "$1.timer"
}

# --- looks

# The activation first: an end that is told here is in force in what is looked at after it.
facts() {
    printf 'nixops-facts 1\n'
    highest=$(activation_ids | tail -n 1)
    printf 'highest-attempt %s\n' "${highest##*-}"
    shown=$(active_id)
    is_whole "$shown" || shown=$highest
    if is_whole "$shown"; then
        check_id "$shown"
        activation_facts
    fi
    printf 'boot-id %s\n' "$(boot_id)"
    printf 'current-system %s\n' "$(system_behind /run/current-system)"
    printf 'booted-system %s\n' "$(system_behind /run/booted-system)"
    printf 'profile-system %s\n' "$(system_behind "$PROFILE")"
    generation=$(readlink "$PROFILE" || true)
    generation=${generation##*system-}
    generation=${generation%-link}
    case $generation in *[!0-9]*) generation='' ;; esac
    printf 'profile-generation %s\n' "$generation"
    generations | sed 's/^/generation /'
    printf 'boot-entry-unsure %s\n' "$(yes_if is_unsure)"
    printf 'lists-left %s\n' "$(yes_if lists_left)"
    printf 'forgets %s\n' "$(yes_if lies_in_memory)"
    os_release
    printf 'is-nixos %s\n' "$(yes_if is_nixos)"
    printf 'version-id %s\n' "$version"
    record_state_version
    printf 'state-version %s\n' "$(grep -xE '[0-9]{2}[.][0-9]{2}' "$HOME_DIR/machine" 2>/dev/null | head -n 1)"
    printf 'owner %s\n' "$(owner)"
    printf 'building %s\n' "$(built_now)"
    printf 'restart-for %s\n' "$(restart_for /run/current-system)"
    printf 'machine %s\n' "$(uname -m)"
    printf 'free-bytes %s\n' "$(free_bytes)"
    key_facts
    failed=$(failed_units)
    [ -z "$failed" ] || printf '%s\n' "$failed" | sed 's/^/failed-unit /'
    printf 'end\n'
}

# `<number> used` or `<number> free` of each generation of the profile. Used are its own, what runs, what was booted, and
# what ran before the last activation.
generations() {
    used=$(for each in /run/current-system /run/booted-system "$ROOTS/previous"; do system_behind "$each"; done)
    find "${PROFILE%/*}" -maxdepth 1 -name 'system-*-link' -printf '%f %l\n' |
        awk -v own="$(readlink "$PROFILE" || true)" -v used="$(printf '%s' "$used" | tr '\n' ' ')" '
            BEGIN { split(used, systems); for (each in systems) is_used[systems[each]] }
            $1 ~ /^system-[0-9]+-link$/ {
                number = substr($1, 8, length($1) - 12)
                print number, ($1 == own || $2 in is_used ? "used" : "free")
            }'
}

failed_units() {
    failed=$(systemctl list-units --state=failed --plain --no-legend --full --no-pager) || exit
    printf '%s\n' "$failed" | while read -r unit rest; do
        [ -z "$unit" ] || printf '%s\n' "$unit"
    done
}

# The group is ours alone: sshd makes a session for each command. Where one part ends, all end, and the operator asks
# for a new watch.
watch() {
    command -v inotifywait >/dev/null || return 0
    keys=$(known_keys | cut -d ' ' -f 1)
    { watch_links; kill 0; } </dev/null &
    { watch_home; kill 0; } </dev/null &
    { watch_units; kill 0; } </dev/null &
    cat >/dev/null
    kill 0
}

# A path for each event. That all watches are there, inotifywait says on stderr; it counts as a change, so that nothing
# is missed that came before.
told() {
    inotifywait -m -e create -e close_write -e attrib -e moved_to -e moved_from -e delete --format '%w%f' "$@" 2>&1
}

# The links, and keys, lie in folders where other things happen, too.
watch_links() {
    folders=$(for each in /run/. "$PROFILE" $keys; do printf '%s\n' "${each%/*}/"; done | sort -u)
    told $(for each in $folders; do [ ! -d "$each" ] || printf '%s\n' "$each"; done) | while read -r path; do
        case $path in
            'Watches established.' | /run/current-system | /run/booted-system | "$PROFILE" | "$PROFILE"-*) say_changed ;;
            *) case " $(printf '%s ' $keys)" in *" $path "*) say_changed ;; esac ;;
        esac
    done
}

# The folder of a new key is watched by the next watch.
watch_home() {
    told -r "$HOME_DIR" | while read -r path; do
        case $path in 'Setting up watches.'*) continue ;; esac
        say_changed
        [ "$path" != "$KEYS" ] || [ "$keys" = "$(known_keys | cut -d ' ' -f 1)" ] || break
    done
}

say_changed() { printf 'changed\n'; }

# That a unit has failed, or could not be started (systemd, src/systemd/sd-messages.h).
watch_units() {
    journalctl --follow --lines=0 --quiet --output=cat MESSAGE_ID=d9b373ed55a64feb8242e02dbe79a49c \
        MESSAGE_ID=be02cf6855d2428ba40df7e9d022f03d | while read -r line; do say_changed; done
}

# What of the system $1 is not what was booted, and only a restart brings.
restart_for() {
    [ -e /run/booted-system ] && [ -e "$1" ] || return 0
    differing=''
    for part in kernel initrd kernel-modules; do
        if [ "$(readlink -e "/run/booted-system/$part")" != "$(readlink -e "$1/$part")" ]; then
            differing="$differing $part"
        fi
    done
    if [ "$(boot_parameters /run/booted-system)" != "$(boot_parameters "$1")" ]; then
        differing="$differing kernel-params"
    fi
    printf '%s' "${differing# }"
}

# Whether the system $1 is there, and brings up what was booted.
boots_alike() { [ -e /run/booted-system ] && [ -e "$1" ] && [ -z "$(restart_for "$1")" ]; }

# What is remembered of files with secrets, and what lies there now. SHA-256 of a content tells the operator, who has
# brought it, whether it is still the same; it is written nowhere.
key_facts() {
    known=$(known_keys)
    [ -n "$known" ] || return 0
    printf '%s\n' "$known" | sed 's/^/key /'
    found=$(stat -c '%n %f %U %G %s' $(printf '%s\n' "$known" | cut -d ' ' -f 1) 2>/dev/null) || true
    # An account of a directory service may be called anything (alice@example.org); none that keys are for is called `-`.
    printf '%s\n' "$found" | awk 'NF == 5 {
        for (each = 3; each <= 4; each++) if ($each !~ /^[A-Za-z0-9_.-]+$/ || length($each) > 64) $each = "-"
        print "key-file", $1, $2, $3, $4
    }'
    plain=$(printf '%s\n' "$found" | awk -v most="$KEY_BYTES" '$2 ~ /^8...$/ && $5 <= most { print $1 }')
    [ -z "$plain" ] || sha256sum $plain 2>/dev/null | awk '{ print "key-content", $2, $1 }'
    getent passwd $(printf '%s\n' "$known" | cut -d ' ' -f 3 | sort -u) | account_lines key-user
    getent group $(printf '%s\n' "$known" | cut -d ' ' -f 4 | sort -u) | account_lines key-group
}

account_lines() { sed 's/:.*//' | { grep -xE "$ACCOUNT" || true; } | sed "s/^/$1 /"; }

# A line that somebody has damaged is not ours any more.
known_keys() {
    [ -e "$KEYS" ] || return 0
    form="$KEY_PATH [0-7]{3} $ACCOUNT $ACCOUNT (-|[0-9a-f]{64}) (whole|unowned|owed) [0-9a-f-]{36}"
    grep -xE "$form" "$KEYS" || true
}

boot_parameters() { cat "$1/kernel-params" 2>/dev/null || true; }

free_bytes() { stat -f -c '%a %S' /nix/store | (read -r blocks size && echo $((blocks * size))); }

store_room() { stat -f -c '%S %b %a %c %d' /nix/store; }

# The derivation whose build runs; nothing if none does.
built_now() {
    for each in "$BUILDS"/*/state.building; do
        [ -e "$each" ] || continue
        each=${each%/*}
        if is_active "nixops-build-${each##*/}.service"; then
            sed -n 's/^drv //p' "$each/request"
        fi
    done
}

yes_if() {
    if "$@"; then printf 'yes'; else printf 'no'; fi
}

# What a cut switch-to-configuration still had to do. An empty list says nothing: a unit that was to be reloaded and had
# stopped is crossed out, and the file stays (nixpkgs, switch-to-configuration.pl and -ng, `unrecord_unit`).
lists_left() {
    for list in $UNIT_LISTS; do
        if [ -s "$list" ]; then
            return 0
        fi
    done
    return 1
}

# Whether all that is known of activations goes with this boot.
lies_in_memory() {
    case $(stat -f -c %T "$HOME_DIR") in tmpfs | ramfs) return 0 ;; esac
    return 1
}

# As switch-to-configuration does.
is_nixos() { [ -f /etc/NIXOS ] || [ "$distribution" = nixos ]; }

# Sets $distribution and $version. Up to 20.09 VERSION_ID has more than the release, as in 20.09.1234.0123abc (nixpkgs,
# nixos/modules/misc/version.nix).
os_release() {
    version='' distribution=''
    [ -r /etc/os-release ] || return 0
    while IFS='=' read -r key value; do
        value=${value#[\"\']}
        value=${value%[\"\']}
        case $key in
            ID) distribution=$value ;;
            VERSION_ID) version=$value ;;
        esac
    done </etc/os-release
    case $version in
        *[!A-Za-z0-9._-]*) version='' ;; # of no release of NixOS
        [0-9][0-9].[0-9][0-9]*) version=${version%"${version#?????}"} ;;
    esac
}

# The release at first contact: what system.stateVersion stays at, also when the operator's own record is lost.
# link(2) fails if the file exists, so it is written once.
record_state_version() {
    is_nixos && [ ! -e "$HOME_DIR/machine" ] || return 0
    case $version in
        [0-9][0-9].[0-9][0-9])
            printf '%s\n' "$version" >"$HOME_DIR/machine.new.$$"
            sync "$HOME_DIR/machine.new.$$"
            ln -T "$HOME_DIR/machine.new.$$" "$HOME_DIR/machine" 2>/dev/null || true
            rm -f "$HOME_DIR/machine.new.$$"
            ;;
    esac
}

# `<cluster> <uid> <name>` of whom this host belongs to, nothing if to nobody; `unreadable` for a file of another form.
owner() {
    [ -e "$OWNER" ] || return 0
    owner_cluster='' owner_uid='' owner_name='' rest=''
    read -r owner_cluster owner_uid owner_name rest <"$OWNER" || true
    case $owner_cluster/$owner_uid/$owner_name in
        /* | *//* | */ | *[!A-Za-z0-9._/-]*) printf 'unreadable' ;;
        *) printf '%s %s %s' "$owner_cluster" "$owner_uid" "$owner_name" ;;
    esac
}

# Ids of all activation directories, by attempt.
activation_ids() {
    for each in "$ACTIVATIONS"/????????-*; do
        case ${each##*/????????-} in '' | *[!0-9]* | ??????????*) continue ;; esac
        if [ -d "$each" ]; then
            printf '%s\n' "${each##*/}"
        fi
    done | sort -t - -k 2 -n
}

# The unit is looked at between two looks at the state: an end in between is seen as a changed state, never as
# "switching, but no unit".
activation_facts() {
    load_request
    for look in 1 2 3 4 5; do
        before=$(state)
        unit=no
        if is_active "nixops-activate-$id.service" || is_active "nixops-rollback-$id.service"; then
            unit=yes
        fi
        timer=no
        if is_active "nixops-deadman-$id.timer" || is_active "nixops-confirm-$id.timer" ||
            is_active "nixops-hold-$id.timer"; then
            timer=yes
        fi
        [ "$before" != "$(state)" ] || break
    done
    if [ "$before" = rolledback ] && is_going_down; then
        before=rollingback
    fi
    service_result='' exit_status=''
    if [ -f "$dir/result" ]; then
        read -r service_result exit_status <"$dir/result" || true
    fi
    printf 'activation %s\n' "$id"
    printf 'activation-state %s\n' "$before"
    printf 'activation-toplevel %s\n' "$toplevel"
    printf 'activation-previous %s\n' "$previous"
    printf 'activation-previous-boots %s\n' "$(yes_if boots_alike "$previous")"
    printf 'activation-boot-id %s\n' "$boot"
    printf 'activation-unit %s\n' "$unit"
    printf 'activation-timer %s\n' "$timer"
    printf 'activation-exit-status %s\n' "$exit_status"
    printf 'activation-service-result %s\n' "$service_result"
    printf 'activation-mode %s\nactivation-returns %s\n' "$mode" "$returns"
    printf 'activation-needs-restart %s\n' "$(yes_if [ -e "$dir/needs-restart" ])"
    printf 'activation-held %s\n' "$(yes_if [ -e "$dir/held" ])"
    [ ! -f "$dir/failed-before" ] || sed 's/^/activation-failed-before /' "$dir/failed-before"
}

# --- commands of the operator

daemon() {
    take
    case $argument in '' | *[!A-Za-z0-9._:+/=-]*) fail 64 "malformed public key" ;; esac
    # Set to `daemon`, it would hand us on to the host's own daemon, which does not know the key.
    [ ! -w /nix/var/nix/db ] || unset NIX_REMOTE
    case $(nix-daemon --version) in
        *' (Nix) 2.'[0-3] | *' (Nix) 2.'[0-3].*)
            # Nix before 2.4 knows neither NIX_CONFIG nor `extra-` for these keys.
            trusted=$(nix show-config | sed -n 's/^trusted-public-keys = //p')
            exec nix-daemon --stdio --option trusted-public-keys "$trusted $argument"
            ;;
    esac
    NIX_CONFIG="extra-trusted-public-keys = $argument"
    export NIX_CONFIG
    exec nix-daemon --stdio
}

take_owner() {
    take; cluster=$argument; check_word "$cluster"
    take; uid=$argument; check_word "$uid"
    take; name=$argument; check_word "$name"
}

# `true` if this host is of the object with this cluster and uid.
is_owned_by() {
    case $(owner) in "$1 $2 "*) return 0 ;; esac
    return 1
}

# Under a lock, so that of two who ask at once one is refused.
own() {
    take_owner
    take; old_cluster=$argument
    take; old_uid=$argument
    exec 9>"$HOME_DIR/owner.lock"
    flock 9
    if [ ! -e "$OWNER" ] || is_owned_by "$cluster" "$uid" ||
        { [ -n "$old_cluster" ] && is_owned_by "$old_cluster" "$old_uid"; }; then
        if [ "$(owner)" != "$cluster $uid $name" ]; then
            printf '%s %s %s\n' "$cluster" "$uid" "$name" >"$OWNER.new"
            sync "$OWNER.new"
            mv -T "$OWNER.new" "$OWNER"
            sync "$HOME_DIR"
        fi
        printf 'yes\n'
    else
        printf 'no\n'
    fi
}

disown() {
    take_owner
    exec 9>"$HOME_DIR/owner.lock"
    flock 9
    if is_owned_by "$cluster" "$uid"; then
        stop_build --no-block
        rm -f "$OWNER"
    fi
    if [ -e "$OWNER" ]; then printf 'no\n'; else printf 'yes\n'; fi
}

# A staged key stays until it is installed: whoever was cut gets the same one again.
stage_host_key() {
    exec 9>"$HOME_DIR/host-key.lock"
    flock 9
    staged=$(public_half "$HOST_KEY.nixops-new")
    if [ -z "$staged" ]; then
        rm -f "$HOST_KEY.nixops-new" "$HOST_KEY.nixops-new.pub"
        ssh-keygen -q -t ed25519 -N '' -C '' -f "$HOST_KEY.nixops-new"
        staged=$(public_half "$HOST_KEY.nixops-new")
    fi
    sync "$HOST_KEY.nixops-new" "${HOST_KEY%/*}"
    printf '%s\n' "$staged"
}

# sshd is told each time: a cut call may have replaced the key and not have come as far.
install_host_key() {
    take; wanted=$argument
    case $wanted in 'ssh-ed25519 '*) ;; *) fail 64 "not a host key" ;; esac
    exec 9>"$HOME_DIR/host-key.lock"
    flock 9
    if [ "$(public_half "$HOST_KEY.nixops-new")" = "$wanted" ]; then
        mv -T "$HOST_KEY.nixops-new" "$HOST_KEY"
        sync "${HOST_KEY%/*}"
    fi
    if [ "$(public_half "$HOST_KEY")" != "$wanted" ]; then
        printf 'no\n'
        return 0
    fi
    rm -f "$HOST_KEY.nixops-new.pub"
    printf '%s\n' "$wanted" >"$HOST_KEY.pub.nixops-new"
    mv -T "$HOST_KEY.pub.nixops-new" "$HOST_KEY.pub"
    for unit in sshd.service ssh.service; do
        if is_active "$unit"; then
            systemctl reload-or-restart "$unit"
            break
        fi
    done
    printf 'yes\n'
}

# Of a private key, without its comment; nothing if there is none, or a part of one.
public_half() { ssh-keygen -y -P '' -f "$1" 2>/dev/null </dev/null | cut -d ' ' -f 1,2; }

# Nothing is replaced before all has arrived. Then each file appears by one rename; what must not be forgotten if this is
# killed stands in $KEYS before it: that a file is there, and that units are owed a restart.
deliver_keys() {
    exec 9>"$HOME_DIR/keys.lock"
    flock 9
    umask 077
    work=$HOME_DIR/keys.work
    rm -rf "$work"
    mkdir "$work"
    : >"$work/owed"
    : >"$work/unowned"
    take_file "$work/asked"
    check_asked
    boot=$(boot_id)
    trap remove_new EXIT
    promise_keys
    receive_keys
    exchange_keys
    restart_owed
    remove_dropped
    remember_keys
    trap - EXIT
    rm -rf "$work"
}

# Where a file or folder waits for its rename. A name may have 255 bytes (NAME_MAX, limits.h).
new_of() {
    name=${1##*/}
    [ "${#name}" -le 240 ] || name=$(printf '%s' "$name" | sha256sum | cut -c 1-64)
    printf '%s/.%s.nixops-new' "${1%/*}" "$name"
}

# $1 put or drop: what was asked for with that word.
asked() { sed -n "s/^$1 //p" "$work/asked" >"$work/$1"; }

check_asked() {
    put="put $KEY_PATH [0-7]{3} $ACCOUNT $ACCOUNT [0-9a-f]{64} (-|$UNIT(,$UNIT)*)"
    if grep -vxE "$put|drop $KEY_PATH" "$work/asked" >/dev/null; then
        fail 64 "malformed list of keys"
    fi
    asked put
    asked drop
    while read -r path rest; do
        case $(readlink -m "${path%/*}/")/ in
            /nix/*) fail 20 "$path lies in /nix, which everybody can read" ;;
        esac
    done <"$work/put"
}

remove_new() {
    while read -r path rest; do
        rm -f "$(new_of "$path")"
    done <"$work/put"
}

promise_keys() {
    known_keys >"$work/known"
    awk -v boot="$boot" 'FILENAME == ARGV[1] { known[$1]; print; next }
        !($1 in known) { print $1, $2, $3, $4, "-", "whole", boot }' "$work/known" "$work/put" >"$KEYS.new"
    write_keys
}

write_keys() {
    sync "$KEYS.new"
    mv -T "$KEYS.new" "$KEYS"
    sync "$HOME_DIR"
}

# Owner and mode go to the open file: whoever may write to its folder can put another one in its place.
receive_keys() {
    while read -r path mode user group digest units <&7; do
        make_folder "${path%/*}"
        take_file "$(new_of "$path")"
        if getent passwd "$user" >/dev/null && getent group "$group" >/dev/null; then
            chown "$user:$group" /proc/self/fd/8
        else
            printf '%s\n' "$path" >>"$work/unowned"
        fi
        chmod "$mode" /proc/self/fd/8
        sync /proc/self/fd/8
        exec 8>&-
        if owes_restarts; then
            printf '%s\n' "$path" >>"$work/owed"
        fi
    done 7<"$work/put"
}

# As NixOS makes /run/keys: those who are to read keys are in the group `keys`.
make_folder() {
    [ ! -d "$1/" ] || return 0
    new=$(new_of "$1")
    (umask 022; mkdir -p "${1%/*}/")
    rm -rf "$new"
    mkdir -m 750 "$new"
    chgrp keys "$new" 2>/dev/null || true
    mv -T "$new" "$1"
}

# Whether units may have read another content than the one of $path that is about to take its place. Of a file that is
# gone the digest says what it was.
owes_restarts() {
    awk -v path="$path" '$1 == path { print $5, $6 }' "$work/known" >"$work/was"
    read -r was_digest was_state <"$work/was" || return 1
    [ "$was_digest" != - ] || return 1
    [ "$was_state" != owed ] || return 0
    if [ -e "$path" ] || [ -h "$path" ]; then
        ! [ -f "$path" ] || ! cmp -s "$path" "$(new_of "$path")"
    else
        [ "$was_digest" != "$digest" ]
    fi
}

exchange_keys() {
    if [ -s "$work/owed" ]; then
        awk 'FILENAME == ARGV[1] { owed[$1]; next } $1 in owed { $6 = "owed" } { print }' \
            "$work/owed" "$KEYS" >"$KEYS.new"
        write_keys
    fi
    while read -r path rest; do
        mv -T "$(new_of "$path")" "$path"
        sync "${path%/*}/"
    done <"$work/put"
}

restart_owed() {
    awk 'FILENAME == ARGV[1] { owed[$1]; next } $1 in owed && $6 != "-" { gsub(",", "\n", $6); print $6 }' \
        "$work/owed" "$work/put" | sort -u >"$work/units"
    while read -r unit; do
        if is_active "$unit"; then
            systemctl try-restart --no-block "$unit"
        fi
    done <"$work/units"
}

remove_dropped() {
    while read -r path; do
        if [ -n "$(awk -v path="$path" '$1 == path' "$KEYS")" ]; then
            rm -f "$path" "$(new_of "$path")"
        fi
    done <"$work/drop"
}

remember_keys() {
    awk -v boot="$boot" 'FILENAME == ARGV[1] { unowned[$1]; next } FILENAME == ARGV[2] { gone[$1]; next }
        FILENAME == ARGV[3] { put[$1] = $1 " " $2 " " $3 " " $4 " " $5 " " ($1 in unowned ? "unowned" : "whole") " " boot }
        FILENAME == ARGV[4] && !($1 in gone) && !($1 in put) { print }
        END { for (path in put) print put[path] }' \
        "$work/unowned" "$work/drop" "$work/put" "$KEYS" >"$KEYS.new"
    write_keys
}

# A path that is valid has a valid closure; realising it without builds and substitutes adds the root and nothing else.
root_next() {
    take
    check_store_path "$argument"
    if root_as_next "$argument"; then printf 'yes\n'; else printf 'no\n'; fi
}

root_as_next() {
    nix-store --check-validity "$1" 2>/dev/null || return 1
    mkdir -p "$ROOTS"
    nix-store --realise --option substitute false --option max-jobs 0 --add-root "$ROOTS/next" "$1" >/dev/null || exit
}

# One build at a time: a newer one takes its place. What is in the store already is neither fetched nor built again.
build() {
    take; drv=$argument; check_store_path "$drv"
    take; toplevel=$argument; check_store_path "$toplevel"
    take; timeout=$argument; check_seconds "$timeout"
    take; silent=$argument; check_seconds "$silent"
    case $drv in /nix/store/"$id"-*.drv) ;; *) fail 64 "not the derivation of this build" ;; esac
    mkdir -p -m 700 "$BUILDS"
    exec 9>"$BUILDS/lock"
    flock 9
    if is_active "nixops-build-$id.service"; then
        printf 'building\n'
    elif root_as_next "$toplevel"; then
        stop_build
        printf 'built\n'
    elif ! nix-store --check-validity "$drv" 2>/dev/null; then
        printf 'missing\n'
    else
        stop_build
        # Before the unit is there: a garbage collection must not take the derivations away under it.
        point "$ROOTS/building" "$drv"
        lay_down_build
        start_build
        printf 'building\n'
    fi
}

# The complete directory appears by one rename.
lay_down_build() {
    rm -rf "$BUILDS"/.new.*
    new=$BUILDS/.new.$$
    mkdir -m 700 "$new"
    cat "$0" >"$new/agent"
    printf 'drv %s\ntoplevel %s\n' "$drv" "$toplevel" >"$new/request"
    : >"$new/log"
    : >"$new/out"
    : >"$new/state.building"
    rm -rf "${BUILDS:?}"/*/
    mv -T "$new" "$dir"
}

# The machine's daemon, where it has one, knows its proxies and its limits. A client that is killed ends its builds.
# What a cache says of a path, or that it has none, holds for less than the pause before another try: Nix' own month and
# hour would outlast the repair of a cache that said something wrong.
start_build() {
    daemon=''
    [ ! -S /nix/var/nix/daemon-socket/socket ] || daemon=--setenv=NIX_REMOTE=daemon
    run_unit "nixops-build-$id" $daemon -p RuntimeMaxSec="$timeout" \
        -p StandardOutput="append:$dir/out" -p StandardError="append:$dir/log" \
        -p ExecStopPost="$(shell) $dir/agent build-end $id" \
        "$(command -v nix-store)" --realise "$drv" --add-root "$ROOTS/next" \
        --option max-silent-time "$silent" --option narinfo-cache-positive-ttl 20 \
        --option narinfo-cache-negative-ttl 20 --log-format internal-json ||
        [ "$(state)" != building ] || is_active "nixops-build-$id.service"
}

# $1: `--no-block`, or nothing.
stop_build() {
    for each in "$BUILDS"/*/state.building; do
        [ -e "$each" ] || continue
        mv -T "$each" "${each%building}stopped" 2>/dev/null || true
        each=${each%/*}
        systemctl stop ${1:-} "nixops-build-${each##*/}.service" 2>/dev/null || true
    done
    rm -f "$ROOTS/building"
}

# The state first: of a build that has ended, the log that is read after it is whole.
build_look() {
    take; offset=$argument; check_offset "$offset"
    if [ ! -f "$dir/request" ]; then
        printf 'none\n'
        return 0
    fi
    for look in 1 2 3 4 5; do
        before=$(state)
        unit=$(yes_if is_active "nixops-build-$id.service")
        [ "$before" != "$(state)" ] || break
    done
    service_result='' output=''
    [ ! -f "$dir/result" ] || read -r service_result output <"$dir/result" || true
    size=$(stat -c %s "$dir/log")
    [ "$offset" -le "$size" ] || offset=0
    part=$((size - offset))
    [ "$part" -le "$LOG_PART" ] || part=$LOG_PART
    quiet=$(($(date +%s) - $(stat -c %Y "$dir/log")))
    printf 'state %s\nunit %s\nservice-result %s\noutput %s\n' "$before" "$unit" "$service_result" "$output"
    printf 'quiet %s\nfree-bytes %s\n' "$((quiet > 0 ? quiet : 0))" "$(free_bytes)"
    printf 'offset %s\nsize %s\nlog\n' "$((offset + part))" "$size"
    tail -c "+$((offset + 1))" "$dir/log" | head -c "$part"
}

# It holds switch-to-configuration's lock meanwhile, as any other run.
dry_activate() {
    take; check_store_path "$argument"
    [ -x "$argument/bin/switch-to-configuration" ] || fail 20 "$argument has no bin/switch-to-configuration"
    result=0
    said=$(timeout --kill-after=5 "$DRY_SECONDS" "$argument/bin/switch-to-configuration" dry-activate 2>&1 </dev/null) ||
        result=$?
    printf '%s\n' "$result"
    printf '%s\n' "$said" | head -c 16384
}

claim() {
    take; toplevel=$argument; check_store_path "$toplevel"
    take; previous=$argument; check_store_path "$previous"
    take; timeout=$argument; check_seconds "$timeout"
    take; confirm_timeout=$argument; check_seconds "$confirm_timeout"
    take; mode=$argument
    case $mode in switch | test | boot | restart) ;; *) fail 64 "unknown mode" ;; esac
    take; returns=$argument
    case $returns in yes | no) ;; *) fail 64 "neither yes nor no" ;; esac
    for system in "$toplevel" "$previous"; do
        [ -x "$system/bin/switch-to-configuration" ] ||
            fail 20 "$system has no bin/switch-to-configuration: it is not there, or was built with system.switch.enable = false, and nothing can make a machine run it, or go back to it"
    done
    mkdir -p -m 700 "$ACTIVATIONS"
    exec 9>"$ACTIVATIONS/lock"
    flock 9
    claimed
}

claimed() {
    holder=$(active_id)
    if [ "$holder" != "$id" ] && ! is_free "$holder"; then
        printf 'no\n'
        return 0
    fi
    if [ ! -f "$dir/request" ]; then
        lay_down
    fi
    asked=$toplevel
    load_request
    # The directory of an ended activation, or of one before a reboot, claims nothing any more.
    case $(state) in
        prepared | switching | switched | rollingback | confirmed) ;;
        *) printf 'no\n'; return 0 ;;
    esac
    if [ "$asked" != "$toplevel" ] || [ "$boot" != "$(boot_id)" ]; then
        printf 'no\n'
        return 0
    fi
    point "$ROOTS/previous" "$previous"
    if [ "$holder" != "$id" ]; then
        rm -f "$ACTIVATIONS/active"
        ln -s -T "$id" "$ACTIVATIONS/active"
        prune
    fi
    printf 'yes\n'
}

# Whether the claim of $1 has ended; what a reboot ended is recorded as such. A confirmed activation may be superseded:
# its commit may be what never works.
is_free() {
    is_whole "$1" || return 0
    (
        check_id "$1"
        load_request
        now=$(state)
        case $now in
            prepared | switching | switched | rollingback)
                # The way back of a restart leads through boots: its unit may run now, or has to be started again.
                [ "$now:$mode" != rollingback:restart ] && [ "$boot" != "$(boot_id)" ] && move "$now" rolledback
                ;;
            confirmed) ! is_active "nixops-commit-$id.service" ;;
            rebooting) false ;;
        esac
    )
}

# The complete directory appears by one rename.
lay_down() {
    rm -rf "$ACTIVATIONS"/.new.*
    new=$ACTIVATIONS/.new.$$
    mkdir -m 700 "$new"
    cat "$0" >"$new/agent"
    programs=$(readlink -e "$previous/sw/bin" || true)
    printf '%s\n' "${programs:+$programs:}$FALLBACK_PATH" >"$new/path"
    {
        printf 'toplevel %s\nprevious %s\nboot-id %s\n' "$toplevel" "$previous" "$(boot_id)"
        printf 'timeout %s\nconfirm-timeout %s\n' "$timeout" "$confirm_timeout"
        printf 'mode %s\nreturns %s\n' "$mode" "$returns"
    } >"$new/request"
    failed_units >"$new/failed-before"
    : >"$new/state.prepared"
    sync "$new/agent" "$new/path" "$new/request" "$new/failed-before" "$new"
    rm -rf "$dir"
    mv -T "$new" "$dir"
    sync "$ACTIVATIONS"
}

prune() {
    activation_ids | head -n -"$KEPT_ACTIVATIONS" | while read -r old; do
        if [ "$old" != "$id" ]; then
            stop_timers "$old" # they would run the agent that goes with the directory
            rm -rf "${ACTIVATIONS:?}/$old"
        fi
    done
}

activate() {
    load_request
    load_path
    [ "$(state)" = prepared ] || return 0
    [ "$(active_id)" = "$id" ] || fail 20 "activation $id does not hold the claim"
    [ "$boot" = "$(boot_id)" ] || fail 20 "the host has restarted since activation $id was claimed"
    case $mode in switch | test) ;; *) fail 20 "activation $id is for the next boot" ;; esac
    [ "$returns" = no ] || arm "nixops-deadman-$id" $((timeout + confirm_timeout + DEADMAN_MARGIN))
    if is_active "nixops-activate-$id.service"; then
        return 0
    fi
    run_unit "nixops-activate-$id" -p RuntimeMaxSec="$timeout" \
        -p StandardOutput="append:$dir/log" -p StandardError="append:$dir/log" \
        -p ExecStartPre="$(shell) $dir/agent begin $id" -p ExecStopPost="$(shell) $dir/agent finish $id" \
        "$toplevel/bin/switch-to-configuration" test ||
        [ "$(state)" != prepared ] || is_active "nixops-activate-$id.service"
}

# The new timer first: an activation is never without one.
hold() {
    take; seconds=$argument; check_seconds "$seconds"
    [ "$seconds" -le "$LONGEST_HOLD" ] || fail 64 "longer than a machine may wait for its health"
    load_request
    load_path
    if waits_to_be_confirmed; then
        if [ ! -e "$dir/held" ] && [ "$returns" = yes ]; then
            arm "nixops-hold-$id" "$seconds"
            : >"$dir/held"
        fi
        systemctl stop "nixops-confirm-$id.timer" 2>/dev/null || true
    fi
    case $(state) in
        switched | rebooting | confirmed | committed) printf 'yes\n' ;;
        *) printf 'no\n' ;;
    esac
}

# In the boot of the claim after the switch, else in a later one.
waits_to_be_confirmed() {
    case $(state) in
        switched) [ "$boot" = "$(boot_id)" ] ;;
        rebooting) [ "$boot" != "$(boot_id)" ] && [ "$(system_behind /run/current-system)" = "$toplevel" ] ;;
        *) return 1 ;;
    esac
}

# --- health

# Asked on the machine: that needs neither a port that others reach nor an sshd that forwards. What is asked for names
# no other host. Nothing that an answer or a command says is passed on.
probe() {
    take; seconds=$argument; check_seconds "$seconds"
    take; kind=$argument
    case $kind in
        http) probe_http ;;
        tcp) probe_tcp ;;
        units | exec)
            take; count=$argument; check_seconds "$count"
            set --
            while [ "$count" -gt 0 ]; do
                take
                set -- "$@" "$argument"
                count=$((count - 1))
            done
            "probe_$kind" "$@"
            ;;
        *) fail 64 "unknown kind of health check" ;;
    esac
}

take_port() {
    take
    case $argument in '' | *[!0-9]* | ??????*) fail 64 "not a port" ;; esac
    port=$argument
}

# curl is among NixOS' required packages. -q: no curlrc; --connect-to: to this machine whatever the host is called.
probe_http() {
    take_port
    take; host=$argument
    take; path=$argument
    take; expected=$argument; check_seconds "$expected"
    case $host in '' | *[!A-Za-z0-9.-]*) fail 64 "malformed host name" ;; esac
    case $path in /*) ;; *) fail 64 "malformed path" ;; esac
    for loopback in 127.0.0.1 '[::1]'; do
        result=0
        code=$(curl -q --silent --output /dev/null --max-time "$seconds" --proto =http --noproxy '*' --globoff \
            --path-as-is --connect-to "::$loopback:$port" --write-out '%{http_code}' "http://$host:$port$path") ||
            result=$?
        [ "$result" = 7 ] || break
    done
    case $result in
        0) [ "$code" -eq "$expected" ] || printf 'port %s answers %s, not %s\n' "$port" "$code" "$expected" ;;
        7) printf 'nothing listens on port %s\n' "$port" ;;
        28) printf 'no answer on port %s within %s s\n' "$port" "$seconds" ;;
        127) printf 'curl is not on the machine\n' ;;
        *) printf 'no answer of HTTP on port %s (curl ends with %s)\n' "$port" "$result" ;;
    esac
}

# /dev/tcp is bash's own (bash(1), "Redirection").
probe_tcp() {
    take_port
    for loopback in 127.0.0.1 ::1; do
        result=0
        timeout "$seconds" bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$loopback" "$port" 2>/dev/null || result=$?
        [ "$result" = 1 ] || break
    done
    case $result in
        0) ;;
        1) printf 'nothing listens on port %s\n' "$port" ;;
        124) printf 'no answer on port %s within %s s\n' "$port" "$seconds" ;;
        *) printf 'bash is not on the machine\n' ;;
    esac
}

probe_units() {
    for unit in "$@"; do
        found=$(timeout "$seconds" systemctl show --property=ActiveState --value -- "$unit") || found=unknown
        case $found in
            active | reloading) ;;
            *)
                printf '%s is %s\n' "$unit" "$found"
                return 0
                ;;
        esac
    done
}

probe_exec() {
    result=0
    timeout --kill-after=1 "$seconds" "$@" >/dev/null 2>&1 </dev/null || result=$?
    case $result in
        0) ;;
        124 | 137) printf 'the command did not end within %s s\n' "$seconds" ;;
        126 | 127) printf 'the command cannot be run\n' ;;
        *) printf 'the command ends with %s\n' "$result" ;;
    esac
}

confirm() {
    load_request
    if waits_to_be_confirmed; then
        move switched confirmed || move rebooting confirmed || true
    fi
    tidy
    case $(state) in
        confirmed | committed)
            stop_timers "$id"
            printf 'yes\n'
            ;;
        *) printf 'no\n' ;;
    esac
}

rollback() {
    load_request
    load_path
    return_from prepared switching switched confirmed rebooting
    ! is_going_down || systemctl --no-block reboot
}

# From one of these states to the rollback's unit, or, where it must not return, to the end; nothing from others. The
# states are in the order in which an activation goes through them: one that moves on meanwhile is met further along.
return_from() {
    if [ "$returns" = no ]; then
        for from in "$@"; do
            ! move "$from" failed || break
        done
        tidy
        return 0
    fi
    for from in "$@"; do
        if move "$from" rollingback; then
            # Where switch-to-configuration never ran there is nothing to return from.
            [ "$from" != prepared ] || : >"$dir/untouched"
            break
        fi
    done
    [ "$(state)" != rollingback ] || start_rollback
}

commit() {
    load_request
    load_path
    holder=$(active_id)
    [ -z "$holder" ] || [ "$holder" = "$id" ] || fail 20 "activation $holder has superseded $id"
    case $(state):$mode in
        confirmed:test) move confirmed committed || true; settle; return 0 ;;
        confirmed:* | prepared:boot) ;;
        committed:*) settle; return 0 ;;
        *) fail 20 "activation $id is not confirmed" ;;
    esac
    run_install "nixops-commit-$id" "$dir/commit.log" "$dir/agent" install "$id"
}

adopt() {
    take
    toplevel=$argument
    check_store_path "$toplevel"
    [ "$(system_behind /run/current-system)" = "$toplevel" ] || fail 20 "$toplevel is not the running system"
    holder=$(active_id)
    [ -z "$holder" ] || is_free "$holder" || fail 20 "activation $holder is under way"
    name=${toplevel#/nix/store/}
    run_install "nixops-commit-${name%%-*}" "$HOME_DIR/adopt.log" "$0" install-adopted "$toplevel"
}

# Whatever the boot loader's menu names is there: it is written anew right after they have gone, and again if that fails.
remove_generations() {
    take
    case $argument in '' | *[!0-9\ ]*) fail 64 "not numbers of generations" ;; esac
    holder=$(active_id)
    [ -z "$holder" ] || is_free "$holder" || fail 20 "activation $holder is under way"
    free=$(generations | sed -n 's/ free$//p')
    gone=$(for each in $argument; do printf '%s\n' "$free" | grep -x -e "$each" || true; done)
    [ -n "$gone" ] || return 0
    mark_unsure
    nix-env -p "$PROFILE" --delete-generations $gone >/dev/null 2>&1 || fail 1 "nix-env cannot delete generations"
    run_install nixops-commit-generations "$HOME_DIR/adopt.log" "$0" install-profile
}

# Whoever calls this again meets a machine that is going down, or has come up.
restart() {
    load_request
    load_path
    [ "$mode" = restart ] || fail 20 "activation $id is not to restart the machine"
    [ "$boot" = "$(boot_id)" ] || return 0
    [ "$(active_id)" = "$id" ] || fail 20 "activation $id does not hold the claim"
    case $(state) in
        prepared) run_install "nixops-commit-$id" "$dir/commit.log" "$dir/agent" install "$id" ;;
        rebooting) ;;
        *) fail 20 "activation $id was called off" ;;
    esac
    systemctl --no-block reboot
}

# Runs `agent $4 $5` in unit $1 and waits; a unit that an earlier, cut call started is waited for first. The unit goes
# on when the connection ends.
run_install() {
    waited=0
    while is_active "$1.service"; do
        [ "$waited" -lt "$COMMIT_SECONDS" ] || fail 1 "$1.service still runs"
        waited=$((waited + 1))
        sleep 1
    done
    rm -f "$2"
    if ! run_unit "$1" --wait -p RuntimeMaxSec="$COMMIT_SECONDS" -p StandardOutput="append:$2" \
        -p StandardError="append:$2" "$(shell)" "$3" "$4" ${5:+"$5"}; then
        tail -c 4096 "$2" >&2 || true
        exit 1
    fi
}

show_log() {
    load_request
    [ ! -f "$dir/log" ] || tail -c 16384 "$dir/log"
}

# --- commands of units

begin() {
    move prepared switching || fail 20 "activation $id was called off"
}

# systemd tells how the unit ended ($SERVICE_RESULT, $EXIT_STATUS: systemd.exec(5)); with --collect it then forgets it.
# Exits of switch-to-configuration: nixpkgs, pkgs/by-name/sw/switch-to-configuration-ng/.
finish() {
    load_request
    load_path
    case $(state) in switching | rollingback) ;; *) return 0 ;; esac # `begin` refused: nothing has run
    case ${EXIT_STATUS:-} in '' | *[!0-9]*) status='' ;; *) status=$EXIT_STATUS ;; esac
    printf '%s %s\n' "${SERVICE_RESULT:-unknown}" "$status" >"$dir/result.new"
    mv -T "$dir/result.new" "$dir/result"
    case $(verdict) in
        good)
            # It has done what it knew of. What one of another release left where it does not look asks for no more.
            rm -f $UNIT_LISTS
            [ "$returns" = no ] || arm "nixops-confirm-$id" "$confirm_timeout"
            move switching switched || return 0
            [ "$returns" = no ] || systemctl stop "nixops-deadman-$id.timer"
            ;;
        unchanged)
            ! needs_restart || : >"$dir/needs-restart"
            move switching failed || return 0
            tidy
            ;;
        mixed) return_from switching ;;
    esac
}

verdict() {
    current=$(system_behind /run/current-system)
    case ${SERVICE_RESULT:-unknown}:$status in
        success:0) [ "$current" = "$toplevel" ] && echo good || echo mixed ;;
        # A unit failed in the end; the same exit hides a failed activation script.
        exit-code:4) [ "$current" = "$toplevel" ] && ! a_script_failed && echo good || echo mixed ;;
        # Usage, checks, the lock, another init interface; systemd's own, where nothing was started (systemd.exec(5),
        # "Process exit codes"); whatever errno Perl died with. What counts is whether it came so far as to change things.
        exit-code:*) [ "$current" = "$previous" ] && ! was_begun && echo unchanged || echo mixed ;;
        *) echo mixed ;;
    esac
}

# `activate` names the snippet; that it failed at all only switch-to-configuration-ng says. Lines of the journal, which
# the output ends with if a unit has failed, may quote another run, such as nixos-upgrade's.
a_script_failed() {
    grep -v '^[A-Z][a-z][a-z] [ 0-9][0-9] [0-9][0-9]:[0-9][0-9]:[0-9][0-9] ' "$dir/log" |
        grep -e 'Failed to run activate script' -e "Activation script snippet '.*' failed (" >/dev/null
}

# Exit 100, and what NixOS 25.11 and later refuse before (nixpkgs, nixos/modules/system/activation/switchable-system.nix,
# `switchInhibitors`): the running system cannot become this one, a booted one can.
needs_restart() {
    [ "$status" = 100 ] || grep -q "Pre-switch check 'switchInhibitors' failed" "$dir/log"
}

was_begun() {
    [ -e "$dir/log" ] && grep -q -e '^stopping the following units' -e '^activating the configuration' "$dir/log"
}

# `next` was made by the build itself; here it is seen that it made what it was to make.
build_end() {
    # A restart cuts a build, and says nothing about it.
    [ "$(systemctl is-system-running || true)" != stopping ] || return 0
    toplevel=$(sed -n 's/^toplevel //p' "$dir/request")
    read -r root <"$dir/out" || root='' # with --add-root Nix prints the root, not what it protects
    printf '%s %s\n' "${SERVICE_RESULT:-unknown}" "${root:+$(readlink "$root")}" >"$dir/result.new"
    mv -T "$dir/result.new" "$dir/result"
    if [ "${SERVICE_RESULT:-}" = success ] && nix-store --check-validity "$toplevel"; then
        move building built || true
    else
        move building failed || true
    fi
    rm -f "$ROOTS/building"
}

expire() {
    load_request
    load_path
    return_from prepared switching switched rebooting
    tidy
}

# Run by the new system as it comes up. There is nothing to return to where the machine booted what it had run.
guard() {
    check_id "$(active_id)"
    load_request
    load_path
    [ "$(state)" = rebooting ] && [ "$boot" != "$(boot_id)" ] || return 0
    [ "$returns" = yes ] && [ "$previous" != "$toplevel" ] || return 0
    arm "nixops-confirm-$id" $((confirm_timeout + GUARD_MARGIN))
}

# Stopping the unit also frees the lock of a switch-to-configuration that hangs. systemd starts this again if it fails.
return_to_previous() {
    load_request
    load_path
    if [ "$(state)" = rollingback ]; then
        leave
    fi
    tidy
    ! is_going_down || systemctl --no-block reboot
}

# What runs till then is no system to be kept.
is_going_down() { [ "$(cat "$dir/left-in" 2>/dev/null || true)" = "$(boot_id)" ]; }

leave() {
    systemctl stop "nixops-activate-$id.service" 2>/dev/null || true
    returned=yes is_left=no boots_previous=no
    if [ "$mode" = restart ]; then
        [ "$(system_behind /run/current-system)" = "$previous" ] || is_left=yes
        boots_previous=$(yes_if is_chosen_once)
        restart_back || returned=no
    else
        [ -e "$dir/untouched" ] || switch_back || returned=no
    fi
    open_sshd
    if [ "$returned" = no ]; then
        # By itself GRUB boots the previous system: the rest can be done from there.
        [ "$is_left:$boots_previous" != yes:yes ] || systemctl --no-block reboot
        fail 1 "could not return to $previous"
    fi
    [ "$is_left" = no ] || boot_id >"$dir/left-in"
    move rollingback rolledback
}

# NIXOS_NO_CHECK: a check that refuses the way back would lock everybody out. Where the previous system never switched
# without an error, it will not now; but 11 (somebody else has the lock) and a signal mean that it did not run to its end.
# 255 is Perl's `die`, not a signal.
switch_back() {
    share_lists
    status=0
    NIXOS_NO_CHECK=1 "$previous/bin/switch-to-configuration" test || status=$?
    case $status in 11 | 129 | 1[3-8]? | 19[0-2]) return 1 ;; esac
    [ "$(system_behind /run/current-system)" = "$previous" ] || return 1
    rm -f $UNIT_LISTS
}

# What was booted and is not confirmed is left by another boot.
restart_back() {
    [ ! -e "$dir/untouched" ] || return 0
    toplevel=$previous
    NIXOS_NO_CHECK=1
    export NIXOS_NO_CHECK
    install_system
}

# What the new system's switch-to-configuration had stopped, the previous one's is to start, wherever it looks.
share_lists() {
    for list in start-list restart-list reload-list; do
        if [ -s "/run/nixos/$list" ] || [ -s "/run/systemd/$list" ]; then
            mkdir -p /run/nixos
            cat "/run/nixos/$list" "/run/systemd/$list" 2>/dev/null | sort -u >"/run/nixos/$list.all"
            cp "/run/nixos/$list.all" "/run/systemd/$list"
            mv -T "/run/nixos/$list.all" "/run/nixos/$list"
        fi
    done
}

# sshd.socket where NixOS has services.openssh.startWhenNeeded; ssh.service on Debian.
open_sshd() {
    for unit in sshd.service sshd.socket ssh.service; do
        if is_active "$unit"; then
            return 0
        fi
    done
    for unit in sshd.service sshd.socket ssh.service; do
        systemctl reset-failed "$unit" 2>/dev/null || true
        if systemctl start "$unit" 2>/dev/null; then
            return 0
        fi
    done
    printf 'no sshd could be started\n' >&2
}

install_activated() {
    load_request
    load_path
    now=$(state)
    case $now:$mode in
        confirmed:* | prepared:boot) after=committed ;;
        prepared:restart) after=rebooting ;;
        *) return 0 ;;
    esac
    if [ "$after:$returns" = rebooting:yes ]; then install_for_once; else install_system; fi
    move "$now" "$after"
    [ "$after" = rebooting ] || settle
}

mark_unsure() {
    : >"$UNSURE" || return
    sync "$UNSURE" "$HOME_DIR"
}

# Where its exit is looked at, `set -e` does not count.
install_system() {
    mark_unsure || return
    forget_choice || return
    nix-env -p "$PROFILE" --set "$toplevel" || return
    "$toplevel/bin/switch-to-configuration" boot || return
    rm -f "$UNSURE"
}

# The previous system stays what the machine boots by itself, and a kernel that does not come up is left by any reset.
# The boot entry is unsure until what was booted is confirmed and becomes it. Boot loaders that cannot do it boot the new
# system until its guard, or a person, says otherwise.
install_for_once() {
    mark_unsure
    nix-env -p "$PROFILE" --set "$toplevel"
    choose_once || install_system
}

# NixOS' GRUB makes its first argument the default entry, has a menu of all generations beside it, and obeys
# `next_entry` for one boot (nixpkgs, nixos/modules/system/boot/loader/grub/install-grub.pl). Where it has users, it asks
# for a password before it boots anything but the default entry.
choose_once() {
    [ "$previous" != "$toplevel" ] && command -v grub-editenv >/dev/null || return 1
    NIXOS_NO_CHECK=1 "$previous/bin/switch-to-configuration" boot || return 1
    grep -q 'save_env next_entry' "$GRUB/grub.cfg" && ! grep -q '^set superusers=' "$GRUB/grub.cfg" || return 1
    entry=$(menu_entry) && [ -n "$entry" ] || return 1
    grub-editenv "$GRUB/grubenv" set "next_entry=$entry" "$ONCE" || return 1
    sync "$GRUB/grubenv" "$GRUB"
}

is_chosen_once() { grep -qs "^$ONCE\$" "$GRUB/grubenv"; }

# Ours alone, not what a person has chosen. Without the program the boot loader is another one by now.
forget_choice() {
    if is_chosen_once && command -v grub-editenv >/dev/null; then
        grub-editenv "$GRUB/grubenv" unset next_entry "${ONCE%=*}"
    fi
}

# A machine that forgets our folder with the boot has the choice all the same.
is_unsure() { [ -e "$UNSURE" ] || is_chosen_once; }

# Titles of the submenus and the entry that boot $toplevel, as GRUB wants them (GRUB manual, "default": `>` between
# them, and twice for one in a title). Where a generation has specialisations its submenu has submenus.
menu_entry() {
    awk -v init="init=$toplevel/init" '
        /^(submenu|menuentry) "/ {
            title = $0; sub(/^[a-z]+ "/, "", title); sub(/".*/, "", title); gsub(/>/, ">>", title); titles[++depth] = title
        }
        /^}/ && depth > 0 { depth-- }
        depth > 1 && index($0 " ", " " init " ") {
            for (level = 1; level <= depth; level++) printf "%s%s", (level > 1 ? ">" : ""), titles[level]
            exit
        }' "$GRUB/grub.cfg"
}

# What a committed activation no longer needs. `next` may protect a newer system by now.
settle() {
    if [ "$(readlink "$ROOTS/next" || true)" = "$toplevel" ]; then
        rm -f "$ROOTS/next"
    fi
    tidy
}

# --- disks

# NVMe disks carry the volume's id as their serial number, without its dash (EBS User Guide, "Identify the EBS device");
# on older instance types they are called as EC2 attaches them, or xvd in place of sd. $disk: empty if there is none.
take_disk() {
    take; volume=$argument
    take; device=$argument
    case $volume in vol-*[!0-9a-f-]* | vol-) fail 64 "malformed volume id" ;; vol-*) ;; *) fail 64 "no volume id" ;; esac
    case $device in *[!a-z0-9/]*) fail 64 "malformed device" ;; /dev/sd*) ;; *) fail 64 "malformed device" ;; esac
    by_id=/dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_vol${volume#vol-}
    disk=
    for path in "$by_id" "$device" "/dev/xvd${device#/dev/sd}"; do
        [ -b "$path" ] || continue
        disk=$(readlink -f "$path")
        return 0
    done
}

disk_users() {
    take_disk
    [ -n "$disk" ] || return 0
    lsblk --noheadings --raw --output MOUNTPOINT "$disk" | grep . || true
}

# --- file systems as large as their disks

grow_root() { grow_at /; }

# What lies deeper than a partition (LUKS, LVM) is not looked for; what is not mounted grows when it is.
grow_volume() {
    take_disk
    [ -n "$disk" ] || fail 20 "the machine has no disk of $volume"
    lsblk --noheadings --list --paths --output NAME,TYPE "$disk" >"$HOME_DIR/disk.$$"
    while read -r part kind; do
        case $kind in disk | part | loop) ;; *) continue ;; esac
        if place=$(findmnt --noheadings --first-only --output TARGET --source "$part"); then
            grow_at "$place"
        else
            case $(blkid --probe --match-tag TYPE --output value "$part" || true) in
                ext2 | ext3 | ext4 | xfs | btrfs) echo unmounted ;;
            esac
        fi
    done <"$HOME_DIR/disk.$$"
    rm -f "$HOME_DIR/disk.$$"
}

# What is mounted there. The tools are those of the file system, which NixOS has in the system path where such a one is
# mounted (nixos/modules/tasks/filesystems.nix, system.fsPackages).
grow_at() {
    findmnt --noheadings --raw --nofsroot --mountpoint "$1" --output SOURCE,FSTYPE | tail -n 1 >"$HOME_DIR/mounted.$$"
    read -r device type <"$HOME_DIR/mounted.$$"
    rm -f "$HOME_DIR/mounted.$$"
    [ -b "$device" ] || return 0
    device=$(readlink -f "$device")
    grow_partition "/sys/class/block/${device##*/}"
    case $type in
        ext2 | ext3 | ext4) resize2fs "$device" ;;
        xfs) xfs_growfs "$1" ;;
        btrfs) btrfs filesystem resize max "$1" ;;
        *)
            [ "$1" != / ] || fail 20 "file systems of type $type are not grown by the operator; grow it, or leave spec.target.ec2.rootVolume.size out"
            ;;
    esac >&2
}

# To the end of its disk, if there is room for more than the alignment and the second table of GPT (EFI specification,
# "GPT Disk Layout"). Sizes in /sys are in sectors of 512 bytes.
grow_partition() {
    [ -e "$1/partition" ] || return 0
    read -r number <"$1/partition"; read -r start <"$1/start"; read -r size <"$1/size"
    disk=$(readlink -f "$1/.."); read -r whole <"$disk/size"
    [ $((whole - start - size)) -gt 4096 ] || return 0
    # --no-reread: it is mounted; partx tells the kernel.
    printf ', +\n' | sfdisk --quiet --no-reread --no-tell-kernel -N "$number" "/dev/${disk##*/}"
    partx --update --nr "$number" "/dev/${disk##*/}"
}

# --- dispatch

command=${1:-}
case $command in
    claim | activate | hold | confirm | commit | restart | rollback | log | begin | finish | expire | return | install) check_id "${2:-}" ;;
    install-adopted) toplevel=${2:-}; check_store_path "$toplevel" ;;
    build | build-look | build-end) check_build_id "${2:-}" ;;
esac
case $command in
    facts) facts ;;
    watch) watch ;;
    daemon) daemon ;;
    own) own ;;
    disown) disown ;;
    stage-host-key) stage_host_key ;;
    install-host-key) install_host_key ;;
    build) build ;;
    build-look) build_look ;;
    build-stop) stop_build ;;
    keys) deliver_keys ;;
    disk-users) disk_users ;;
    grow-root) grow_root ;;
    grow-volume) grow_volume ;;
    store-room) store_room ;;
    root-next) root_next ;;
    dry-activate) dry_activate ;;
    claim) claim ;;
    activate) activate ;;
    hold) hold ;;
    probe) probe ;;
    confirm) confirm ;;
    commit) commit ;;
    adopt) adopt ;;
    remove-generations) remove_generations ;;
    restart) restart ;;
    rollback) rollback ;;
    log) show_log ;;
    begin) begin ;;
    finish) finish ;;
    expire) expire ;;
    guard) guard ;;
    return) return_to_previous ;;
    build-end) build_end ;;
    install) install_activated ;;
    install-adopted) install_system ;;
    install-profile) toplevel=$(system_behind "$PROFILE"); install_system ;;
    *) fail 64 "unknown command" ;;
esac
