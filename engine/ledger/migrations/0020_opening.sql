-- The Idempotency-Key that a sale was opened under, and whether the gate is known to have taken the sale: engines that don't
-- know the column offer what they write.
ALTER TABLE sales ADD COLUMN IF NOT EXISTS idempotency_key text, ADD COLUMN IF NOT EXISTS offered boolean NOT NULL DEFAULT true;
CREATE UNIQUE INDEX IF NOT EXISTS sales_by_key ON sales (idempotency_key);
CREATE INDEX IF NOT EXISTS sales_unoffered ON sales (sale_id) WHERE NOT offered;
