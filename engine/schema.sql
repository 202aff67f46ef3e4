-- The ledger: the source of truth of what was sold. Every statement may run again, from several processes at once.

SELECT pg_advisory_xact_lock(hashtext('flashgrid schema'));

CREATE TABLE IF NOT EXISTS sales (
    sale_id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    product_id bigint NOT NULL,
    stock      bigint NOT NULL CHECK (stock >= 0),
    sold       bigint NOT NULL DEFAULT 0 CHECK (sold >= 0),
    user_limit bigint CHECK (user_limit > 0),
    quantity   integer NOT NULL CHECK (quantity > 0),
    starts_at  timestamptz,
    ends_at    timestamptz,
    opened_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT never_oversold CHECK (sold <= stock)
) WITH (fillfactor = 50);  -- room for the next version of a row whose counter moves with every batch

CREATE TABLE IF NOT EXISTS orders (
    order_id        uuid PRIMARY KEY,
    sale_id         bigint NOT NULL,  -- in sales: settle_orders joins and locks it; a foreign key would check each row
    product_id      bigint NOT NULL,
    user_id         bigint NOT NULL,
    quantity        integer NOT NULL CHECK (quantity > 0),
    status          text NOT NULL CHECK (status IN ('CONFIRMED', 'FAILED', 'REJECTED')),
    reason          text,
    idempotency_key text,
    accepted_at     timestamptz NOT NULL,
    settled_at      timestamptz NOT NULL
);

-- Settles a batch of distinct orders: one row for each, `fresh` where this call wrote it; none for an order whose sale
-- does not exist. Orders that were settled before stay as they are. Units go to the new ones by their time of
-- acceptance for as long as the running sum fits into the stock.
CREATE OR REPLACE FUNCTION settle_orders(
    order_ids uuid[], sale_ids bigint[], product_ids bigint[], user_ids bigint[], quantities integer[],
    idempotency_keys text[], accepted_ms bigint[], declines text[]
) RETURNS TABLE (order_id uuid, status text, reason text, fresh boolean)
LANGUAGE plpgsql
SET enable_seqscan = off  -- a plan made while the tables are young must not outlive their youth
AS $$
#variable_conflict use_column
DECLARE
    known uuid[];
BEGIN
    -- In the order of their ids, so that two batches never wait for each other. Each statement below begins after the
    -- locks are held and so sees everything that earlier holders of them committed.
    PERFORM FROM sales WHERE sale_id = ANY (sale_ids) ORDER BY sale_id FOR NO KEY UPDATE;

    known := ARRAY(SELECT order_id FROM orders WHERE order_id = ANY (order_ids));

    RETURN QUERY
    WITH judged AS (
        SELECT batch.*, CASE
            WHEN decline IS NOT NULL THEN 'FAILED'
            WHEN sold + sum(batch.quantity) FILTER (WHERE decline IS NULL) OVER (
                PARTITION BY sale_id ORDER BY accepted_ms ROWS UNBOUNDED PRECEDING
            ) <= stock THEN 'CONFIRMED'
            ELSE 'REJECTED'
        END AS status
        FROM unnest(
            order_ids, sale_ids, product_ids, user_ids, quantities, idempotency_keys, accepted_ms, declines
        ) AS batch (order_id, sale_id, product_id, user_id, quantity, idempotency_key, accepted_ms, decline)
        JOIN sales USING (sale_id)
        WHERE order_id <> ALL (known)
    ), inserted AS (
        INSERT INTO orders
        SELECT order_id, sale_id, product_id, user_id, quantity, status,
            CASE status WHEN 'FAILED' THEN decline WHEN 'REJECTED' THEN 'no unit left in the ledger' END,
            idempotency_key, to_timestamp(accepted_ms / 1000.0), clock_timestamp()
        FROM judged
        ON CONFLICT DO NOTHING
        RETURNING order_id, sale_id, quantity, status, reason
    ), counted AS (
        UPDATE sales SET sold = sold + units
        FROM (SELECT sale_id, sum(quantity) AS units FROM inserted WHERE status = 'CONFIRMED' GROUP BY sale_id) AS taken
        WHERE sales.sale_id = taken.sale_id
    )
    SELECT order_id, status, reason, true FROM inserted;

    RETURN QUERY SELECT order_id, status, reason, false FROM orders WHERE order_id = ANY (known);
END
$$;

-- One row: the gate's latest generation. No two rebuilds share one, and as they go with the time, not even where this
-- database was restored from a backup.
CREATE TABLE IF NOT EXISTS gate (
    only_row   boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    generation bigint NOT NULL
);
