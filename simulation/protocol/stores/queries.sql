-- What an example does to the ledger and reads of it beside the engine's statements.

-- name: prepare
-- To truncate a table the server locks it now and then, which no statement of an example waits for.
ALTER TABLE orders SET (vacuum_truncate = off); ALTER TABLE sales SET (vacuum_truncate = off); ALTER TABLE gate
SET (vacuum_truncate = off);

-- name: forget
ROLLBACK; SELECT pg_advisory_unlock_all();

-- name: empty
DELETE FROM orders; DELETE FROM sales; DELETE FROM gate;

-- name: open
INSERT INTO gate (generation) VALUES ($1::bigint);

-- name: read_generation
SELECT max(generation) FROM gate;

-- name: list_settled
SELECT order_id::text FROM orders;

-- name: read_newest
SELECT coalesce((extract(epoch FROM max(accepted_at)) * 1000)::bigint, 0) FROM orders;

-- name: list_offered
SELECT sale_id FROM sales WHERE offered OR sold > 0;

-- name: find_left
SELECT DISTINCT ON (product_id) product_id, sale_id, stock - sold FROM sales ORDER BY product_id, sale_id DESC;

-- name: read_sales
SELECT sale_id, product_id, stock, sold, user_limit, quantity, NULL AS starts_us, NULL AS ends_us, idempotency_key
FROM sales
ORDER BY sale_id;

-- name: read_orders
SELECT order_id::text, sale_id, product_id, user_id, quantity, status, reason, idempotency_key,
    (extract(epoch FROM accepted_at) * 1000000)::bigint AS accepted_us,
    (extract(epoch FROM settled_at) * 1000000)::bigint AS settled_us
FROM orders;
