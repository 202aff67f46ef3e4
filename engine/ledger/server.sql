-- Whether this server takes writes, and which timeline it is on: a promotion begins a new one, with a higher number. A
-- standby knows the timeline that it follows from what it receives (shown to some roles only) and from its own notes, and
-- either may be behind. A primary's notes are: of one that was promoted they show the new timeline minutes later.
SELECT
    current_setting('transaction_read_only') = 'off' AS writes,
    CASE WHEN pg_is_in_recovery()
        THEN greatest(
            (SELECT received_tli FROM pg_stat_wal_receiver),
            (SELECT min_recovery_end_timeline FROM pg_control_recovery()),
            (SELECT timeline_id FROM pg_control_checkpoint())
        )
        ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer
    END AS timeline
