#!/bin/sh
# Writes the users of Redis with their passwords; of a Redis that runs, loads them too, and no connection is lost.
#
# The rules of each user stand in users.acl, the password of the user NAME in /run/secrets/redis/NAME (while it is
# changed the old one and the new one, with a blank between), or else in the variable NAME_REDIS_PASSWORD.
set -eu
umask 077
USERS=/tmp/users.acl

passwords() {
    if [ -e "/run/secrets/redis/$1" ]; then
        cat "/run/secrets/redis/$1"
    else
        printenv "$(echo "$1" | tr '[:lower:]' '[:upper:]')_REDIS_PASSWORD"
    fi
}

grep '^user ' "$(dirname "$0")/users.acl" | while read -r _ name rules; do
    given=$(passwords "$name") || { echo "redis: no password for the user $name" >&2; exit 1; }
    # They stand in URLs, and between blanks here.
    if [ -z "$given" ] || echo "$given" | grep -qv '^[A-Za-z0-9 ]*$'; then
        echo "redis: the password of the user $name is empty, or more than letters and digits" >&2
        exit 1
    fi
    printf 'user %s on' "$name"
    for password in $given; do printf ' >%s' "$password"; done
    printf ' %s\n' "$rules"
done >"$USERS.new"
mv "$USERS.new" "$USERS"

case $0 in
    */load-users.sh) sh "$(dirname "$0")/cli.sh" -e acl load ;;
esac
