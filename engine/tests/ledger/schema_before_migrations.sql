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
    sale_id         bigint NOT NULL,  -- in sales: settle_batch joins and locks it; a foreign key would check each row
    product_id      bigint NOT NULL,
    user_id         bigint NOT NULL,
    quantity        integer NOT NULL CHECK (quantity > 0),
    status          text NOT NULL CHECK (status IN ('CONFIRMED', 'FAILED', 'REJECTED')),
    reason          text,
    idempotency_key text,
    accepted_at     timestamptz NOT NULL,
    settled_at      timestamptz NOT NULL
);

-- True where this server may write; fails on one that no longer is the primary, or was made read-only: what it knows is out
-- of date. Every query that only reads asks for it, once, before it looks at any row.
CREATE OR REPLACE FUNCTION in_charge() RETURNS boolean
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    IF current_setting('transaction_read_only')::boolean THEN
        RAISE read_only_sql_transaction USING MESSAGE = 'this server is read-only';
    END IF;
    RETURN true;
END
$$;

-- Settles what nearly every batch is: new orders of one sale, equal in product and quantity, all paid, all within the
-- stock. Writes nothing and says false where they don't fit in; fails where one of them is known. `idempotency_keys`
-- may be NULL where no order has one.
CREATE OR REPLACE FUNCTION settle_plain(
    sale bigint, product bigint, units integer,
    order_ids uuid[], user_ids bigint[], accepted_ms bigint[], idempotency_keys text[]
) RETURNS boolean
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
BEGIN
    UPDATE sales SET sold = sold + units::bigint * cardinality(order_ids)
    WHERE sale_id = sale AND sold + units::bigint * cardinality(order_ids) <= stock;
    IF FOUND THEN
        INSERT INTO orders
        SELECT order_id, sale, product, user_id, units, 'CONFIRMED', NULL,
            idempotency_key, to_timestamp(accepted_ms / 1000.0), clock_timestamp()
        FROM unnest(order_ids, user_ids, accepted_ms, idempotency_keys)
            AS batch (order_id, user_id, accepted_ms, idempotency_key);
    END IF;
    RETURN FOUND;
END
$$;

-- Settles any batch of distinct orders. An order that this call CONFIRMED gets no row; any other one gets a row with its
-- place in the batch, from 1: fresh where this call wrote it, not fresh where it was settled before and stays as it is,
-- without a status where its sale does not exist. Units go to the new ones by their time of acceptance for as long as
-- the running sum fits into the stock. `idempotency_keys` and `declines` may be NULL where no order has one.
CREATE OR REPLACE FUNCTION settle_batch(
    order_ids uuid[], sale_ids bigint[], product_ids bigint[], user_ids bigint[], quantities integer[],
    idempotency_keys text[], accepted_ms bigint[], declines text[]
) RETURNS TABLE (place bigint, status text, reason text, fresh boolean)
LANGUAGE plpgsql
SET enable_seqscan = off  -- a plan made while the tables are young must not outlive their youth
AS $$
#variable_conflict use_column
DECLARE
    known uuid[];
BEGIN
    -- In the order of their ids, so that two batches never wait for each other. Each statement below begins after the
    -- locks are held and so sees everything that earlier holders of them committed: an order that is not known now can't
    -- appear before the end, since the transaction that settles it must hold its sale.
    PERFORM FROM sales WHERE sale_id = ANY (sale_ids) ORDER BY sale_id FOR NO KEY UPDATE;

    known := ARRAY(SELECT order_id FROM orders WHERE order_id = ANY (order_ids));

    RETURN QUERY
    WITH offered AS MATERIALIZED (
        SELECT sale_id, stock, sold FROM sales WHERE sale_id = ANY (sale_ids)
    ), judged AS MATERIALIZED (
        SELECT batch.*, CASE
            WHEN stock IS NULL THEN NULL
            WHEN decline IS NOT NULL THEN 'FAILED'
            WHEN sold + sum(batch.quantity) FILTER (WHERE decline IS NULL) OVER (
                PARTITION BY batch.sale_id ORDER BY accepted_ms ROWS UNBOUNDED PRECEDING
            ) <= stock THEN 'CONFIRMED'
            ELSE 'REJECTED'
        END AS status
        FROM unnest(
            order_ids, sale_ids, product_ids, user_ids, quantities, idempotency_keys, accepted_ms, declines
        ) WITH ORDINALITY
            AS batch (order_id, sale_id, product_id, user_id, quantity, idempotency_key, accepted_ms, decline, place)
        LEFT JOIN offered USING (sale_id)
        WHERE order_id <> ALL (known)
    ), inserted AS (
        INSERT INTO orders
        SELECT order_id, sale_id, product_id, user_id, quantity, status,
            CASE status WHEN 'FAILED' THEN decline WHEN 'REJECTED' THEN 'no unit left in the ledger' END,
            idempotency_key, to_timestamp(accepted_ms / 1000.0), clock_timestamp()
        FROM judged
        WHERE status IS NOT NULL
    ), counted AS (
        UPDATE sales SET sold = sold + units
        FROM (SELECT sale_id, sum(quantity) AS units FROM judged WHERE status = 'CONFIRMED' GROUP BY sale_id) AS taken
        WHERE sales.sale_id = taken.sale_id
    )
    SELECT place, status, CASE status WHEN 'FAILED' THEN decline WHEN 'REJECTED' THEN 'no unit left in the ledger' END, true
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

-- One row: the gate's latest generation. No two rebuilds share one, and as they go with the time, not even where this
-- database was restored from a backup.
CREATE TABLE IF NOT EXISTS gate (
    only_row   boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    generation bigint NOT NULL
);
