-- One order, settled as a textbook consumer does it: both statements in one transaction of its own.
INSERT INTO orders VALUES ($1, $2, $3, $4, 1, 'CONFIRMED', NULL, NULL, now(), clock_timestamp());

UPDATE sales SET sold = sold + 1 WHERE sale_id = $1;
