-- Orders from number $1 to number $2, spread evenly over the time since $3 (Unix milliseconds) as if there were $4 of them in
-- all, in turn of sale $5, whose users may buy little, and of sale $6. A million users buy; each $7th order has a key.
INSERT INTO orders
SELECT
    (lpad(to_hex(at), 12, '0') || '7' || substr(md5(n::text), 1, 3) || '8' || substr(md5(n::text), 4, 15))::uuid,
    CASE n % 2 WHEN 0 THEN $5::bigint ELSE $6::bigint END, 1 + n % 2, n / 2 % 1000000 + 1, 1, 'CONFIRMED', NULL,
    CASE n % $7::bigint WHEN 0 THEN 'key-' || n END, to_timestamp(at / 1000.0), to_timestamp(at / 1000.0)
FROM (
    SELECT n, $3::bigint + (extract(epoch FROM now()) * 1000 - $3::bigint)::bigint * n / $4::bigint AS at
    FROM generate_series($1::bigint, $2::bigint) AS n
) AS numbered;
