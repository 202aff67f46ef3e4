#!/bin/bash
# Run once, when the first server has made its data: lets standbys follow it, one of which confirms each commit.
set -eu
echo 'host replication all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
psql --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" \
    --command "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (one, two, three)'" \
    --command "ALTER SYSTEM SET wal_keep_size = '1GB'"
