CREATE TABLE IF NOT EXISTS items (item bigint PRIMARY KEY, amount bigint NOT NULL);
CREATE TABLE IF NOT EXISTS units_sold (id bigserial PRIMARY KEY, buyer bigint NOT NULL, item bigint NOT NULL);
