-- A key buys once, whatever the gate has forgotten: of the orders under one Idempotency-Key the ledger confirms one. Where the
-- gate has lost which order a key got, a retry places another one, and the first may arrive later.

CREATE INDEX IF NOT EXISTS orders_by_key ON orders (user_id, product_id, idempotency_key) WHERE idempotency_key IS NOT NULL;

-- True where no key of the batch has bought yet; a key belongs to one user and one product, and stands for the purchases that
-- were accepted less than `remember_s` apart. Until the end of the transaction nobody else settles under keys of these
-- products: their sales' locks are not enough, as the two orders may be of two sales.
CREATE OR REPLACE FUNCTION keys_are_new(
    product_ids bigint[], user_ids bigint[], idempotency_keys text[], accepted_ms bigint[], remember_s integer
) RETURNS boolean
LANGUAGE plpgsql
SET enable_seqscan = off  -- a plan made while the tables are young must not outlive their youth
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
#variable_conflict use_column
BEGIN
    -- In order, so that two batches never wait for each other, and few, as the server has room for few locks.
    PERFORM pg_advisory_xact_lock(hashtext('flashgrid keys'), slot)
    FROM (SELECT DISTINCT (product_id % 64)::integer AS slot FROM unnest(product_ids) AS product_id ORDER BY slot) AS slots;

    -- This statement begins after the locks are held and so sees everything that earlier holders of them committed.
    RETURN NOT EXISTS (
        SELECT
        FROM unnest(product_ids, user_ids, idempotency_keys, accepted_ms)
            AS batch (product_id, user_id, idempotency_key, accepted_ms)
        JOIN orders USING (product_id, user_id, idempotency_key)
        WHERE status = 'CONFIRMED' AND abs(extract(epoch FROM accepted_at) * 1000 - accepted_ms) < remember_s * 1000.0
    );
END
$$;

-- Settles any batch of distinct orders as settle_batch does, and rejects those whose keys have bought another order. No two
-- orders of the batch have the same key.
CREATE OR REPLACE FUNCTION settle_keyed(
    order_ids uuid[], sale_ids bigint[], product_ids bigint[], user_ids bigint[], quantities integer[],
    idempotency_keys text[], accepted_ms bigint[], declines text[], remember_s integer
) RETURNS TABLE (place bigint, status text, reason text, fresh boolean)
LANGUAGE plpgsql
SET enable_seqscan = off  -- as in keys_are_new
SET enable_hashjoin = off
SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    known uuid[];
    rivals uuid[];
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('flashgrid keys'), slot)
    FROM (SELECT DISTINCT (product_id % 64)::integer AS slot FROM unnest(product_ids) AS product_id ORDER BY slot) AS slots;

    -- As in settle_batch.
    PERFORM FROM sales WHERE sale_id = ANY (sale_ids) ORDER BY sale_id FOR NO KEY UPDATE;

    known := ARRAY(SELECT order_id FROM orders WHERE order_id = ANY (order_ids));
    -- For each order of the batch the one that its key has bought, or NULL.
    rivals := ARRAY(
        SELECT (
            SELECT orders.order_id
            FROM orders
            WHERE orders.user_id = batch.user_id AND orders.product_id = batch.product_id
                AND orders.idempotency_key = batch.idempotency_key AND status = 'CONFIRMED'
                AND abs(extract(epoch FROM accepted_at) * 1000 - accepted_ms) < remember_s * 1000.0
            LIMIT 1
        )
        FROM unnest(product_ids, user_ids, idempotency_keys, accepted_ms) WITH ORDINALITY
            AS batch (product_id, user_id, idempotency_key, accepted_ms, place)
        ORDER BY place
    );

    RETURN QUERY
    WITH offered AS MATERIALIZED (
        SELECT sale_id, stock, sold FROM sales WHERE sale_id = ANY (sale_ids)
    ), judged AS MATERIALIZED (
        SELECT batch.*, CASE
            WHEN stock IS NULL THEN NULL
            WHEN decline IS NOT NULL THEN 'FAILED'
            WHEN rival IS NULL AND sold + sum(batch.quantity) FILTER (WHERE decline IS NULL AND rival IS NULL) OVER (
                PARTITION BY batch.sale_id ORDER BY accepted_ms ROWS UNBOUNDED PRECEDING
            ) <= stock THEN 'CONFIRMED'
            ELSE 'REJECTED'
        END AS status, coalesce(
            decline, 'its Idempotency-Key has bought order ' || rival, 'no unit left in the ledger'
        ) AS reason
        FROM unnest(
            order_ids, sale_ids, product_ids, user_ids, quantities, idempotency_keys, accepted_ms, declines, rivals
        ) WITH ORDINALITY AS batch (
            order_id, sale_id, product_id, user_id, quantity, idempotency_key, accepted_ms, decline, rival, place
        )
        LEFT JOIN offered USING (sale_id)
        WHERE order_id <> ALL (known)
    ), inserted AS (
        INSERT INTO orders
        SELECT order_id, sale_id, product_id, user_id, quantity, status, CASE WHEN status <> 'CONFIRMED' THEN reason END,
            idempotency_key, to_timestamp(accepted_ms / 1000.0), clock_timestamp()
        FROM judged
        WHERE status IS NOT NULL
    ), counted AS (
        UPDATE sales SET sold = sold + units
        FROM (SELECT sale_id, sum(quantity) AS units FROM judged WHERE status = 'CONFIRMED' GROUP BY sale_id) AS taken
        WHERE sales.sale_id = taken.sale_id
    )
    SELECT place, status, CASE WHEN status IS NOT NULL THEN reason END, true
    FROM judged
    WHERE status IS DISTINCT FROM 'CONFIRMED';

    IF cardinality(known) > 0 THEN
        RETURN QUERY
        SELECT place, status, reason, false
        FROM unnest(order_ids) WITH ORDINALITY AS batch (order_id, place)
        JOIN orders USING (order_id)
        WHERE order_id = ANY (known);
    END IF;
END
$$;
