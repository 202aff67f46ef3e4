-- What the textbook's front door asks of PostgreSQL: open a sale, what is left of a stock, an order, a stock.
INSERT INTO textbook_stock (product_id, stock) VALUES ($1, $2)
ON CONFLICT (product_id) DO UPDATE SET stock = $2, sold = 0;

SELECT stock - sold FROM textbook_stock WHERE product_id = $1;

SELECT status FROM textbook_orders WHERE order_id = $1;

SELECT stock FROM textbook_stock WHERE product_id = $1;
