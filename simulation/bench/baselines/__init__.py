"""What the engine is measured against: servers that answer the same purchase in other ways."""
