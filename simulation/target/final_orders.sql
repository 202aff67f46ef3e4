-- Orders of the run ($1 is an array of sale ids, or null for all), times as Unix microseconds.
-- Among them are those of its products that were opened, or sold, under an id that nobody was told.
SELECT order_id, sale_id, product_id, user_id, quantity, status, reason, idempotency_key,
       (extract(epoch FROM accepted_at) * 1000000)::bigint AS accepted_us,
       (extract(epoch FROM settled_at) * 1000000)::bigint AS settled_us
FROM orders
WHERE $1::bigint[] IS NULL OR sale_id = ANY ($1::bigint[]) OR (
    sale_id > (SELECT min(told) FROM unnest($1::bigint[]) AS told)
    AND product_id IN (SELECT known.product_id FROM sales AS known WHERE known.sale_id = ANY ($1::bigint[]))
)
