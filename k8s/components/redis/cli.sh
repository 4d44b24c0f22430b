#!/bin/sh
# redis-cli as the administrator (the user `default`), in Redis' own container.
set -eu
if [ -e /run/secrets/redis/default ]; then
    # The oldest password is the first: Redis may not have loaded the new one yet.
    read -r REDISCLI_AUTH _ </run/secrets/redis/default || true
else
    REDISCLI_AUTH=$DEFAULT_REDIS_PASSWORD
fi
export REDISCLI_AUTH
exec redis-cli "$@"
