#!/bin/sh
# redis-cli as the administrator (the user `default`), in Redis' own container.
set -eu
if [ -e /run/secrets/redis/default ]; then
    # The newest password is the last.
    REDISCLI_AUTH=$(tail -n 1 /run/secrets/redis/default)
else
    REDISCLI_AUTH=$DEFAULT_REDIS_PASSWORD
fi
export REDISCLI_AUTH
exec redis-cli "$@"
