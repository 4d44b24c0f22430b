#!/bin/bash
# Runs bootstrap.sql in PostgreSQL's own image: waits for each server, then makes the roles and schemas of the
# services. It may run any number of times, also several at once: they take turns.
#
#   ADMIN_DATABASE_URL               of a superuser, or of an owner who may create roles
#   AUTH_ADMIN_DATABASE_URL and PRODUCT_…, ORDER_…   the same, where a service has a database of its own
#   AUTH_DATABASE_PASSWORD and PRODUCT_…, ORDER_…    what the services' roles sign in with
set -euo pipefail

# bootstrap SERVICE SCHEMA: its role is shoppee_SERVICE. Passwords stay in the environment: every process of the host can
# read arguments.
bootstrap() {
    local url_name=${1^^}_ADMIN_DATABASE_URL password_name=${1^^}_DATABASE_PASSWORD
    local url=${!url_name:-${ADMIN_DATABASE_URL:?}} why said=
    unset PGPASSWORD
    export PASSWORD=${!password_name:?} ROLE=shoppee_$1 SCHEMA=$2
    if [[ $url =~ ^([a-z]+://[^:/?@]*):([^@]*)@(.*)$ ]]; then
        url=${BASH_REMATCH[1]}@${BASH_REMATCH[3]}
        local encoded=${BASH_REMATCH[2]//\\/\\\\}
        PGPASSWORD=$(printf '%b' "${encoded//%/\\x}")
        export PGPASSWORD
    fi
    # The first line says why it waits, and each change of the reason.
    until why=$(PGCONNECT_TIMEOUT=5 psql "$url" --quiet --no-psqlrc --command "select" 2>&1 >/dev/null); do
        case $why in *"password authentication failed"*) echo "bootstrap: $1: $why" >&2; exit 1 ;; esac
        [[ $why == "$said" ]] || echo "bootstrap: waits for the database of $1: $why" >&2
        said=$why
        sleep 1
    done
    psql "$url" --quiet --no-psqlrc --set ON_ERROR_STOP=1 <<'COMMANDS'
set client_min_messages = warning;
\set database :DBNAME
\getenv role ROLE
\getenv schema SCHEMA
\getenv password PASSWORD
\o /dev/null
-- Held until the session ends; the number is a word nobody else uses: "shop".
select pg_advisory_lock(1936224112);
\i /bootstrap/bootstrap.sql
COMMANDS
    echo "bootstrap: the role and the schema of $1 are there"
}

bootstrap auth auth
bootstrap product product
bootstrap order orders
