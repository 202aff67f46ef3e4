-- name: ping
SELECT 1;

-- name: open_sale
INSERT INTO sales (product_id, stock, user_limit, quantity, starts_at, ends_at)
VALUES ($1, $2, $3, $4, to_timestamp($5::bigint / 1000.0), to_timestamp($6::bigint / 1000.0))
RETURNING sale_id;

-- name: find_orders
SELECT order_id, user_id, product_id, sale_id, quantity, status, reason
FROM orders
WHERE order_id = ANY ($1::uuid[]);

-- name: settle_orders
SELECT order_id, status, reason, fresh
FROM settle_orders(
    $1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::integer[], $6::text[], $7::bigint[], $8::text[]
);
