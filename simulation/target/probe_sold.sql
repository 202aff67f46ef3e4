-- Units confirmed of each of the run's sales. A count of the orders would read all of them, five times a second.
SELECT sale_id, sold, NOT current_setting('transaction_read_only')::boolean AS takes_writes
FROM sales WHERE sale_id = ANY ($1)
