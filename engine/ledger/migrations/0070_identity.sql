-- Which ledger this is: gate and bus keep it, and serve no other one. A copy of the database has the same.
ALTER TABLE gate ADD COLUMN IF NOT EXISTS identity uuid NOT NULL DEFAULT gen_random_uuid();
