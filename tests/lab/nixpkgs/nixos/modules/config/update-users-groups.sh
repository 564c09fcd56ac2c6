#!/bin/bash
# Makes the accounts that the files `groups` and `users` of folder $1 declare, and removes those that an
# earlier generation declared and this one does not. Lines: NAME|GID and
# NAME|UID|GROUP|EXTRA,GROUPS|HOME|SHELL|CREATE_HOME|HOME_MODE|IS_SYSTEM|PASSWORD|DESCRIPTION. Safe to repeat.
set -u
declared=$1
state=/var/lib/nixos
failed=0
mkdir -p "$state"

names() { cut -d'|' -f1 "$1" | sort; }
gone() { comm -23 <(sort "$1" 2>/dev/null) <(names "$2"); }

while IFS='|' read -r name gid; do
  if entry=$(getent group "$name"); then
    have=$(cut -d: -f3 <<<"$entry")
    [ -z "$gid" ] || [ "$have" = "$gid" ] || groupmod -g "$gid" "$name" || failed=1
  else
    groupadd --system ${gid:+-g "$gid"} "$name" || failed=1
  fi
done <"$declared/groups"

while IFS='|' read -r name uid group extra home shell create mode system password description; do
  if entry=$(getent passwd "$name"); then
    IFS=: read -r _ _ have_uid have_gid _ have_home have_shell <<<"$entry"
    want_gid=$(getent group "$group" | cut -d: -f3)
    have_extra=$(id -nG "$name" | tr ' ' '\n' | grep -vxF "$group" | sort | paste -sd,)
    want_extra=$(tr , '\n' <<<"$extra" | sed /^$/d | sort | paste -sd,)
    if [ "$have_gid" != "$want_gid" ] || [ "$have_home" != "$home" ] || [ "$have_shell" != "$shell" ] ||
      [ "$have_extra" != "$want_extra" ]; then
      usermod -g "$group" -G "$extra" -d "$home" -s "$shell" "$name" || failed=1
    fi
    [ -z "$uid" ] || [ "$have_uid" = "$uid" ] || echo "warning: not applying UID change of user ‘$name’ ($have_uid -> $uid) in /etc/passwd" >&2
  else
    flags=()
    [ "$system" = false ] || flags+=(--system)
    useradd "${flags[@]}" ${uid:+-u "$uid"} -g "$group" ${extra:+-G "$extra"} -d "$home" -s "$shell" -M -p "$password" -c "$description" "$name" || failed=1
  fi
  if [ "$create" = true ] && [ ! -d "$home" ]; then
    mkdir -p "$home" && chmod "$mode" "$home" && chown "$name:$group" "$home" || failed=1
  fi
done <"$declared/users"

if [ -e "$state/declarative-users" ]; then
  for name in $(gone "$state/declarative-users" "$declared/users"); do
    getent passwd "$name" >/dev/null || continue
    echo "removing user ‘$name’" >&2
    userdel "$name" || failed=1
  done
fi
if [ -e "$state/declarative-groups" ]; then
  for name in $(gone "$state/declarative-groups" "$declared/groups"); do
    getent group "$name" >/dev/null || continue
    echo "removing group ‘$name’" >&2
    groupdel "$name" || failed=1
  done
fi
names "$declared/users" >"$state/declarative-users.new" && mv "$state/declarative-users.new" "$state/declarative-users"
names "$declared/groups" >"$state/declarative-groups.new" && mv "$state/declarative-groups.new" "$state/declarative-groups"
exit $failed
