#!/bin/sh
# Runs Redis with a user for each process (users.acl), in Redis' own image. Arguments go to redis-server.
set -eu
# shellcheck source=load-users.sh
. "$(dirname "$0")/load-users.sh"
exec redis-server --aclfile "$USERS" --appendonly yes --appendfsync everysec --maxmemory-policy volatile-lru "$@"
