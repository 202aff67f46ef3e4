-- The tables of the textbook engine.
SELECT pg_advisory_lock(7269);
CREATE TABLE IF NOT EXISTS textbook_stock (
    product_id bigint PRIMARY KEY,
    stock bigint NOT NULL,
    sold bigint NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS textbook_orders (
    order_id uuid PRIMARY KEY,
    user_id bigint NOT NULL,
    product_id bigint NOT NULL,
    status text NOT NULL,
    accepted_at timestamptz NOT NULL,
    written_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
SELECT pg_advisory_unlock(7269)
