-- Orders that were settled long ago, from number $1 to number $2, a thousand of them in each millisecond since $3 (Unix
-- milliseconds). Their ids are UUIDs of version 7, like all others: the index grows at its right edge, as in a real sale.
INSERT INTO orders
SELECT
    (lpad(to_hex($3::bigint + n / 1000), 12, '0') || '7' || substr(md5(n::text), 1, 3) || '8' || substr(md5(n::text), 4, 15))::uuid,
    0, 1, n, 1, 'CONFIRMED', NULL, NULL,
    to_timestamp(($3::bigint + n / 1000) / 1000.0), to_timestamp(($3::bigint + n / 1000) / 1000.0)
FROM generate_series($1::bigint, $2::bigint) AS n;
