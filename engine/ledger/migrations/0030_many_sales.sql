-- Settles what a batch is when a crowd buys many products: new orders of any sales, all paid, all within the stock. Fails,
-- with nothing written, where units are missing or an order is known. `idempotency_keys` may be NULL where no order has one.
CREATE OR REPLACE FUNCTION settle_many(
    order_ids uuid[], sale_ids bigint[], product_ids bigint[], user_ids bigint[], quantities integer[],
    idempotency_keys text[], accepted_ms bigint[]
) RETURNS void
LANGUAGE plpgsql
SET enable_seqscan = off  -- as in settle_batch
AS $$
#variable_conflict use_column
DECLARE
    asked bigint;
    counted bigint;
BEGIN
    -- In the order of their ids, as in settle_batch.
    PERFORM FROM sales WHERE sale_id = ANY (sale_ids) ORDER BY sale_id FOR NO KEY UPDATE;

    WITH taken AS MATERIALIZED (
        SELECT sale_id, sum(quantity) AS units
        FROM unnest(sale_ids, quantities) AS batch (sale_id, quantity)
        GROUP BY sale_id
    ), counted AS (
        UPDATE sales SET sold = sold + units
        FROM taken
        WHERE sales.sale_id = taken.sale_id AND sold + units <= stock
        RETURNING 1
    )
    SELECT (SELECT count(*) FROM taken), (SELECT count(*) FROM counted) INTO asked, counted;
    IF counted < asked THEN
        RAISE data_exception USING MESSAGE = 'a sale does not exist or has too few units left';
    END IF;

    INSERT INTO orders
    SELECT order_id, sale_id, product_id, user_id, quantity, 'CONFIRMED', NULL,
        idempotency_key, to_timestamp(accepted_ms / 1000.0), clock_timestamp()
    FROM unnest(order_ids, sale_ids, product_ids, user_ids, quantities, idempotency_keys, accepted_ms)
        AS batch (order_id, sale_id, product_id, user_id, quantity, idempotency_key, accepted_ms);
END
$$;
