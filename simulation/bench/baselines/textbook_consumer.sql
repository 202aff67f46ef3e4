-- What the textbook's consumer does for each message: take the unit, if there is one, and write the order.
UPDATE textbook_stock SET sold = sold + 1 WHERE product_id = $1 AND sold < stock;

INSERT INTO textbook_orders (order_id, user_id, product_id, status, accepted_at) VALUES ($1, $2, $3, $4, to_timestamp($5))
ON CONFLICT DO NOTHING;

SELECT 1 FROM textbook_orders WHERE order_id = $1;
