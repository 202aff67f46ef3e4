-- Whether this server is a primary, and its timeline: each promotion begins one with a higher number. A standby's own notes
-- may be older than what it receives.
SELECT
    NOT pg_is_in_recovery() AS is_primary,
    CASE WHEN pg_is_in_recovery()
        THEN greatest(
            (SELECT received_tli FROM pg_stat_wal_receiver),
            (SELECT min_recovery_end_timeline FROM pg_control_recovery()),
            (SELECT timeline_id FROM pg_control_checkpoint())
        )
        ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::integer
    END AS timeline
