CREATE TABLE IF NOT EXISTS offers (sku bigint PRIMARY KEY, units bigint NOT NULL);
CREATE TABLE IF NOT EXISTS tickets (id uuid PRIMARY KEY, who bigint NOT NULL, sku bigint NOT NULL, request text UNIQUE);
CREATE TABLE IF NOT EXISTS log (who bigint, ticket text);
