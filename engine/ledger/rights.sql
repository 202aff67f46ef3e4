-- What the engine needs and its role lacks, in a schema that another role made.
SELECT need
FROM (VALUES
    ('USAGE on a schema of its search_path', current_schema() IS NOT NULL),
    ('SELECT on sales', has_table_privilege(to_regclass('sales'), 'SELECT')),
    ('INSERT on sales', has_table_privilege(to_regclass('sales'), 'INSERT')),
    ('UPDATE on sales', has_table_privilege(to_regclass('sales'), 'UPDATE')),
    ('SELECT on orders', has_table_privilege(to_regclass('orders'), 'SELECT')),
    ('INSERT on orders', has_table_privilege(to_regclass('orders'), 'INSERT')),
    ('SELECT on gate', has_table_privilege(to_regclass('gate'), 'SELECT')),
    ('INSERT on gate', has_table_privilege(to_regclass('gate'), 'INSERT')),
    ('UPDATE on gate', has_table_privilege(to_regclass('gate'), 'UPDATE')),
    ('SELECT on flashgrid_migrations', has_table_privilege(to_regclass('flashgrid_migrations'), 'SELECT')),
    ('EXECUTE on in_charge', has_function_privilege(to_regprocedure('in_charge()'), 'EXECUTE')),
    ('EXECUTE on settle_plain', has_function_privilege(to_regprocedure(
        'settle_plain(bigint, bigint, integer, uuid[], bigint[], bigint[], text[])'
    ), 'EXECUTE')),
    ('EXECUTE on settle_many', has_function_privilege(to_regprocedure(
        'settle_many(uuid[], bigint[], bigint[], bigint[], integer[], text[], bigint[])'
    ), 'EXECUTE')),
    ('EXECUTE on keys_are_new', has_function_privilege(to_regprocedure(
        'keys_are_new(bigint[], bigint[], text[], bigint[], integer)'
    ), 'EXECUTE')),
    ('EXECUTE on settle_keyed', has_function_privilege(to_regprocedure(
        'settle_keyed(uuid[], bigint[], bigint[], bigint[], integer[], text[], bigint[], text[], integer)'
    ), 'EXECUTE')),
    ('EXECUTE on settle_batch', has_function_privilege(to_regprocedure(
        'settle_batch(uuid[], bigint[], bigint[], bigint[], integer[], text[], bigint[], text[])'
    ), 'EXECUTE'))
) AS needs (need, given)
WHERE given IS NOT TRUE;
