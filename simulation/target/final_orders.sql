-- Orders of the run ($1 is an array of sale ids, or null for all), times as Unix microseconds.
SELECT order_id, sale_id, product_id, user_id, quantity, status, reason, idempotency_key,
       (extract(epoch FROM accepted_at) * 1000000)::bigint AS accepted_us,
       (extract(epoch FROM settled_at) * 1000000)::bigint AS settled_us
FROM orders
WHERE $1::bigint[] IS NULL OR sale_id = ANY ($1::bigint[])
