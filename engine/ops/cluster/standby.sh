#!/bin/bash
# A standby by this name: a copy of the first server when it has no data, and then a server that follows it.
set -eu
primary="host=postgres-1 user=$POSTGRES_USER password=$POSTGRES_PASSWORD"
until [ -s "$PGDATA/PG_VERSION" ]; do
    rm -rf "$PGDATA"
    pg_basebackup --dbname "$primary" --pgdata "$PGDATA" --write-recovery-conf --checkpoint fast || sleep 1
done
chmod 700 "$PGDATA"
exec postgres -c "cluster_name=$1"
