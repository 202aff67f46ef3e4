-- Rows of every table, by the server's own statistics: those that have been committed and not deleted.
SELECT relid::regclass::text AS name, n_live_tup AS rows FROM pg_stat_user_tables
