-- What keeps a rebuild of the gate, its audit and the ledger itself bounded, however much was sold before.

-- Set once the gate no longer needs the sale: a newer one of the product is on offer, or it ended long ago.
ALTER TABLE sales ADD COLUMN IF NOT EXISTS retired_at timestamptz;

CREATE INDEX IF NOT EXISTS sales_on_offer ON sales (product_id, sale_id DESC) WHERE retired_at IS NULL;

-- Orders come in by time, and so those of a sale lie side by side: block ranges cost next to nothing to write.
CREATE INDEX IF NOT EXISTS orders_of_sales ON orders USING brin (sale_id) WITH (autosummarize = on);

CREATE INDEX IF NOT EXISTS orders_with_keys ON orders (order_id) WHERE idempotency_key IS NOT NULL;

-- Orders with lower ids may have been pruned: one that is not found here was settled.
ALTER TABLE gate ADD COLUMN IF NOT EXISTS pruned_before uuid;

-- Refuses to settle an order anew that may have been settled and pruned. The bound is committed before anything is pruned,
-- so whoever finds such an order missing finds the bound.
CREATE OR REPLACE FUNCTION refuse_pruned() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    IF EXISTS (SELECT FROM gate JOIN inserted ON order_id < pruned_before) THEN
        RAISE check_violation USING MESSAGE = 'an order of that age was settled and pruned, or is too old to be settled';
    END IF;
    RETURN NULL;
END
$$;

CREATE OR REPLACE TRIGGER refuse_pruned AFTER INSERT ON orders
REFERENCING NEW TABLE AS inserted FOR EACH STATEMENT EXECUTE FUNCTION refuse_pruned();
