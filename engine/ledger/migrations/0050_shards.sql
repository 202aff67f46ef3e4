-- The number of the gate's shards, which decides where a product is: NULL until an engine that knows of it says one.
ALTER TABLE gate ADD COLUMN IF NOT EXISTS shards integer CHECK (shards > 0);
