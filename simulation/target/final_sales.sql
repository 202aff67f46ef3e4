-- Sales of the run ($1 is an array of sale ids, or null for all), times as Unix microseconds.
-- Among them are those of its products that were opened, or sold, under an id that nobody was told.
SELECT sale_id, product_id, stock, sold, user_limit, quantity,
       (extract(epoch FROM starts_at) * 1000000)::bigint AS starts_us,
       (extract(epoch FROM ends_at) * 1000000)::bigint AS ends_us
FROM sales
WHERE $1::bigint[] IS NULL OR sale_id = ANY ($1::bigint[]) OR (
    sale_id > (SELECT min(told) FROM unnest($1::bigint[]) AS told)
    AND product_id IN (SELECT known.product_id FROM sales AS known WHERE known.sale_id = ANY ($1::bigint[]))
)
ORDER BY sale_id
