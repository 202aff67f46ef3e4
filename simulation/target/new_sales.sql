-- Which of these sales were opened just now.
SELECT sale_id, product_id FROM sales WHERE sale_id = ANY ($1) AND opened_at > now() - interval '5 minutes'
