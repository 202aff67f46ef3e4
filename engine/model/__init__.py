"""What all rooms talk about: sales, purchases, lots, orders and their ids. Pure; imports errors alone."""
