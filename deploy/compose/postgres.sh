#!/bin/sh
# PostgreSQL with one user and one database, made when it first starts.
set -eu
export PATH="/usr/local/pgsql:$PATH" PGDATA=/var/lib/postgresql/data
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --username=postgres --auth-local=peer --auth-host=scram-sha-256 --encoding=UTF8 --locale=C.UTF-8
    echo "host fingerpost fingerpost all scram-sha-256" >>"$PGDATA/pg_hba.conf"
    printf "CREATE ROLE fingerpost LOGIN PASSWORD '%s';\nCREATE DATABASE fingerpost OWNER fingerpost;\n" \
        "$(cat /run/secrets/database_password)" | postgres --single postgres >/dev/null
fi
exec postgres -c listen_addresses='*' -c unix_socket_directories=/tmp
