-- Whether a row of a table may be an order: it says the order's id, whatever stands between its letters and digits, or
-- both its user and its product.
SELECT EXISTS (
    SELECT FROM TABLE_NAME AS t
    WHERE regexp_replace(t::text, '[^[:alnum:]]', '', 'g') ILIKE '%' || regexp_replace($1::text, '[^[:alnum:]]', '', 'g') || '%'
    OR (t::text ~ ('\m' || $2::text || '\M') AND t::text ~ ('\m' || $3::text || '\M'))
)
