-- What the ledger relies on in each of its sessions, whatever is set for its role and its database. The engine bounds its
-- waits itself. An older PostgreSQL lacks some of these settings.
SELECT set_config(name, value, false)
FROM (VALUES
    ('lock_timeout', '1s'),
    ('statement_timeout', '0'),
    ('transaction_timeout', '0'),
    ('idle_in_transaction_session_timeout', '0'),
    ('idle_session_timeout', '0'),
    ('default_transaction_isolation', 'read committed')
) AS needed (name, value)
WHERE current_setting(name, true) IS NOT NULL;
