-- Sales, of whatever product, since the first one that the run was told of ($1 is an array of sale ids, or null for
-- all), times as Unix microseconds.
SELECT sale_id, product_id, stock, sold, user_limit, quantity,
       (extract(epoch FROM starts_at) * 1000000)::bigint AS starts_us,
       (extract(epoch FROM ends_at) * 1000000)::bigint AS ends_us
FROM sales
WHERE $1::bigint[] IS NULL OR sale_id >= (SELECT min(told) FROM unnest($1::bigint[]) AS told)
ORDER BY sale_id
