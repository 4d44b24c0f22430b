#!/bin/sh
# Runs bootstrap.sql in PostgreSQL's own image: waits for the server, then makes the roles and schemas of the
# services. Settings: PGHOST, PGPORT, PGDATABASE, PGUSER and PGPASSWORD of a superuser or of an owner who may
# create roles, and the passwords of the three services. It may run any number of times, also several at once:
# they take turns.
set -eu
: "${PGDATABASE:?}" "${AUTH_DATABASE_PASSWORD:?}" "${PRODUCT_DATABASE_PASSWORD:?}" "${ORDER_DATABASE_PASSWORD:?}"

until pg_isready --quiet; do sleep 1; done

# The passwords come from the environment (\getenv): arguments can be read by every process of the host.
psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 <<'COMMANDS'
set client_min_messages = warning;
\getenv database PGDATABASE
\getenv auth_password AUTH_DATABASE_PASSWORD
\getenv product_password PRODUCT_DATABASE_PASSWORD
\getenv order_password ORDER_DATABASE_PASSWORD
-- Held until the session ends; the number is a word nobody else uses: "shop".
\o /dev/null
select pg_advisory_lock(1936224112);
\o
\i /bootstrap/bootstrap.sql
COMMANDS
echo "bootstrap: roles and schemas are there"
