"""What all rooms talk about: sales, purchases, lots, orders and their ids. Pure: it imports no other room."""
