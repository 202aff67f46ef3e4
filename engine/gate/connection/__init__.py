"""Connections to Redis: to one server, or to the primary of a shard. Imported by the gate alone."""
