-- The first statements of a migration's transaction.

-- A time limit of the role must not end a long migration. But one that waits for a table makes others wait behind it: it
-- gives up soon, to be tried again.
SET LOCAL statement_timeout = 0;
SET LOCAL lock_timeout = '5s';

-- It ends with the transaction, whatever pooler is in between.
SELECT pg_advisory_xact_lock(hashtext('flashgrid schema'));

CREATE TABLE IF NOT EXISTS flashgrid_migrations (
    number     integer PRIMARY KEY,
    name       text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
);
