-- name: open_sale
INSERT INTO sales (product_id, stock, user_limit, quantity, starts_at, ends_at)
VALUES ($1, $2, $3, $4, to_timestamp($5::bigint / 1000.0), to_timestamp($6::bigint / 1000.0))
RETURNING sale_id;

-- name: find_orders
SELECT order_id::text, user_id, product_id, sale_id, quantity, status, reason
FROM orders
WHERE order_id = ANY ($1::uuid[]) AND in_charge();

-- name: settle_plain
SELECT settle_plain(
    $1::bigint, $2::bigint, $3::integer, $4::text::uuid[], $5::text::bigint[], $6::text::bigint[], $7::text[]
) AS settled;

-- name: settle_batch
SELECT place, status, reason, fresh
FROM settle_batch(
    $1::text::uuid[], $2::text::bigint[], $3::text::bigint[], $4::text::bigint[], $5::text::integer[],
    $6::text[], $7::text::bigint[], $8::text[]
);

-- name: read_generation
SELECT max(generation) AS generation FROM gate WHERE in_charge();

-- name: next_generation
INSERT INTO gate (generation) VALUES (extract(epoch FROM now())::bigint)
ON CONFLICT (only_row) DO UPDATE SET generation = greatest(gate.generation + 1, extract(epoch FROM now())::bigint)
RETURNING generation;

-- name: find_current_sales
SELECT DISTINCT ON (product_id) sale_id, product_id, stock, sold, user_limit, quantity,
    (extract(epoch FROM starts_at) * 1000)::bigint AS starts_ms, (extract(epoch FROM ends_at) * 1000)::bigint AS ends_ms
FROM sales
WHERE in_charge()
ORDER BY product_id, sale_id DESC;

-- name: count_bought
SELECT user_id, sum(quantity)::bigint AS units
FROM orders
WHERE sale_id = $1 AND status = 'CONFIRMED' AND in_charge()
GROUP BY user_id;

-- name: find_keys
SELECT order_id, product_id, user_id, idempotency_key, extract(epoch FROM now() - accepted_at)::float8 AS age_s
FROM orders
WHERE order_id > $1::uuid AND idempotency_key IS NOT NULL AND accepted_at > now() - make_interval(secs => $2::float8)
    AND in_charge()
ORDER BY order_id
LIMIT 1000;

-- name: find_newest
SELECT (extract(epoch FROM max(accepted_at)) * 1000)::bigint AS accepted_ms
FROM (SELECT accepted_at FROM orders WHERE in_charge() ORDER BY order_id DESC LIMIT 1000) AS latest;

-- name: try_lock
SELECT pg_try_advisory_lock(hashtext('flashgrid gate')) AS mine WHERE in_charge();

-- name: read_migrations
SELECT number, name FROM flashgrid_migrations ORDER BY number;

-- name: note_migration
INSERT INTO flashgrid_migrations (number, name) VALUES ($1, $2);
