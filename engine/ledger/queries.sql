-- name: open_sale
INSERT INTO sales (product_id, stock, user_limit, quantity, starts_at, ends_at, idempotency_key, offered)
VALUES ($1, $2, $3, $4, to_timestamp($5::bigint / 1000.0), to_timestamp($6::bigint / 1000.0), $7, false)
ON CONFLICT (idempotency_key) DO UPDATE SET offered = sales.offered
RETURNING sale_id, product_id, stock, user_limit, quantity,
    (extract(epoch FROM starts_at) * 1000)::bigint AS starts_ms, (extract(epoch FROM ends_at) * 1000)::bigint AS ends_ms,
    offered;

-- name: find_unoffered
SELECT sale_id, product_id, stock, sold, user_limit, quantity,
    (extract(epoch FROM starts_at) * 1000)::bigint AS starts_ms, (extract(epoch FROM ends_at) * 1000)::bigint AS ends_ms,
    offered
FROM sales
WHERE NOT offered AND opened_at < now() - make_interval(secs => $1::float8) AND in_charge()
ORDER BY sale_id;

-- name: note_offered
-- A sale that another session holds is left as it is: the keeper notes it later.
UPDATE sales SET offered = true
WHERE sale_id = ANY (ARRAY(
    SELECT sale_id FROM sales WHERE sale_id = ANY ($1::bigint[]) AND NOT offered FOR NO KEY UPDATE SKIP LOCKED
))
RETURNING sale_id;

-- name: find_orders
SELECT order_id::text, user_id, product_id, sale_id, quantity, status, reason
FROM orders
WHERE order_id = ANY ($1::uuid[]) AND in_charge();

-- name: settle_plain
SELECT settle_plain(
    $1::bigint, $2::bigint, $3::integer, $4::text::uuid[], $5::text::bigint[], $6::text::bigint[], $7::text[]
) AS settled;

-- name: settle_many
SELECT settle_many(
    $1::text::uuid[], $2::text::bigint[], $3::text::bigint[], $4::text::bigint[], $5::text::integer[],
    $6::text[], $7::text::bigint[]
)::text IS NOT NULL AS settled;

-- name: settle_plain_keyed
SELECT CASE
    WHEN keys_are_new(
        array_fill($2::bigint, ARRAY[cardinality($7::text[])]), $5::text::bigint[], $7, $6::text::bigint[], $8::integer
    )
    THEN settle_plain($1::bigint, $2, $3::integer, $4::text::uuid[], $5::text::bigint[], $6::text::bigint[], $7)
    ELSE false
END AS settled;

-- name: settle_many_keyed
SELECT CASE
    WHEN keys_are_new($3::text::bigint[], $4::text::bigint[], $6::text[], $7::text::bigint[], $8::integer)
    THEN settle_many(
        $1::text::uuid[], $2::text::bigint[], $3::text::bigint[], $4::text::bigint[], $5::text::integer[],
        $6, $7::text::bigint[]
    )::text IS NOT NULL
    ELSE false
END AS settled;

-- name: settle_batch
SELECT place, status, reason, fresh
FROM settle_batch(
    $1::text::uuid[], $2::text::bigint[], $3::text::bigint[], $4::text::bigint[], $5::text::integer[],
    $6::text[], $7::text::bigint[], $8::text[]
);

-- name: settle_keyed
SELECT place, status, reason, fresh
FROM settle_keyed(
    $1::text::uuid[], $2::text::bigint[], $3::text::bigint[], $4::text::bigint[], $5::text::integer[],
    $6::text[], $7::text::bigint[], $8::text[], $9::integer
);

-- name: find_locked
WITH free AS MATERIALIZED (
    SELECT sale_id FROM sales WHERE sale_id = ANY ($1::bigint[]) FOR NO KEY UPDATE SKIP LOCKED
)
SELECT sale_id FROM sales WHERE sale_id = ANY ($1::bigint[]) AND sale_id NOT IN (SELECT sale_id FROM free);

-- name: read_generation
SELECT max(generation) AS generation FROM gate WHERE in_charge();

-- name: next_generation
INSERT INTO gate (generation, shards) VALUES (greatest($1::bigint + 1, extract(epoch FROM now())::bigint), $2)
ON CONFLICT (only_row) DO UPDATE
SET generation = greatest(gate.generation + 1, excluded.generation), shards = excluded.shards
WHERE coalesce(gate.shards, excluded.shards) = excluded.shards
RETURNING generation;

-- name: claim_shards
INSERT INTO gate (generation, shards) VALUES (0, $1)
ON CONFLICT (only_row) DO UPDATE SET shards = coalesce(gate.shards, excluded.shards)
RETURNING shards;

-- name: find_unsafe
SELECT name
FROM unnest('{synchronous_commit,fsync,full_page_writes}'::text[]) AS name
WHERE current_setting(name) = 'off' AND in_charge();

-- name: read_identity
INSERT INTO gate (generation) VALUES (0)
ON CONFLICT (only_row) DO UPDATE SET generation = gate.generation
RETURNING identity::text;

-- name: change_shards
UPDATE gate SET generation = greatest(gate.generation + 1, extract(epoch FROM now())::bigint), shards = $1
RETURNING generation;

-- name: find_current_sales
SELECT DISTINCT ON (product_id) sale_id, product_id, stock, sold, user_limit, quantity,
    (extract(epoch FROM starts_at) * 1000)::bigint AS starts_ms, (extract(epoch FROM ends_at) * 1000)::bigint AS ends_ms,
    offered
FROM sales
WHERE retired_at IS NULL AND in_charge()
ORDER BY product_id, sale_id DESC;

-- name: find_offers
SELECT product_id, sale_id, stock, sold, quantity, ends_at IS NOT NULL AND ends_at < now() - make_interval(secs => $1::float8),
    offered
FROM sales
WHERE retired_at IS NULL AND in_charge()
ORDER BY product_id, sale_id DESC;

-- name: retire_sales
UPDATE sales SET retired_at = now() WHERE sale_id = ANY ($1::bigint[]) AND retired_at IS NULL;

-- name: count_bought
SELECT sale_id, user_id, sum(quantity)::bigint
FROM orders
WHERE sale_id = ANY ($1::bigint[]) AND status = 'CONFIRMED' AND in_charge()
GROUP BY sale_id, user_id;

-- name: find_keys
SELECT order_id, product_id, user_id, idempotency_key, extract(epoch FROM now() - accepted_at)::float8 AS age_s
FROM orders
WHERE order_id > $1::uuid AND idempotency_key IS NOT NULL AND accepted_at > now() - make_interval(secs => $2::float8)
    AND (status = 'CONFIRMED' OR NOT EXISTS (
        -- What a key has bought is its order, not one beside it that was declined or rejected.
        SELECT FROM orders AS other
        WHERE other.user_id = orders.user_id AND other.product_id = orders.product_id
            AND other.idempotency_key = orders.idempotency_key AND other.status = 'CONFIRMED'
            AND other.accepted_at > now() - make_interval(secs => $2::float8)
    ))
    AND in_charge()
ORDER BY order_id
LIMIT 10000;

-- name: begin_pruning
INSERT INTO gate (generation, pruned_before) VALUES (0, $1::uuid)
ON CONFLICT (only_row) DO UPDATE SET pruned_before = greatest(gate.pruned_before, excluded.pruned_before);

-- name: prune
WITH step AS MATERIALIZED (
    SELECT order_id, sale_id FROM orders WHERE order_id > $1::uuid AND order_id < $2::uuid ORDER BY order_id LIMIT $3
), gone AS (
    DELETE FROM orders
    USING step
    WHERE orders.order_id = step.order_id AND NOT EXISTS (
        -- A rebuild counts the orders of a sale on offer whose users have a limit.
        SELECT FROM sales WHERE sales.sale_id = step.sale_id AND user_limit IS NOT NULL AND retired_at IS NULL
    )
    RETURNING orders.order_id
)
SELECT (SELECT order_id::text FROM step ORDER BY order_id DESC LIMIT 1) AS last,
    (SELECT count(*) FROM gone) AS gone,
    (SELECT count(*) FROM step) - (SELECT count(*) FROM gone) AS kept;

-- name: find_pruned
SELECT asked.order_id::text
FROM unnest($1::uuid[]) AS asked (order_id)
JOIN gate ON asked.order_id < pruned_before
WHERE in_charge();

-- name: find_newest
SELECT product_id, (extract(epoch FROM max(accepted_at)) * 1000)::bigint AS accepted_ms
FROM (SELECT product_id, accepted_at FROM orders WHERE in_charge() ORDER BY order_id DESC LIMIT 1000) AS latest
GROUP BY product_id;

-- name: find_accepted
SELECT DISTINCT product_id
FROM orders
WHERE order_id > $1::uuid AND order_id < $2::uuid AND accepted_at > to_timestamp($3::bigint / 1000.0)
    AND accepted_at < to_timestamp($4::bigint / 1000.0) AND in_charge();

-- name: try_lock
SELECT pg_try_advisory_lock(hashtext('flashgrid gate')) AS mine WHERE in_charge();

-- name: unlock
SELECT pg_advisory_unlock(hashtext('flashgrid gate'));

-- name: read_migrations
SELECT number, name FROM flashgrid_migrations ORDER BY number;

-- name: note_migration
INSERT INTO flashgrid_migrations (number, name) VALUES ($1, $2);
