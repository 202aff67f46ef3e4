-- Whether a row of a table says an order id, whatever stands between its letters and digits.
SELECT EXISTS (
    SELECT FROM TABLE_NAME AS t
    WHERE regexp_replace(t::text, '[^[:alnum:]]', '', 'g') ILIKE '%' || regexp_replace($1, '[^[:alnum:]]', '', 'g') || '%'
)
