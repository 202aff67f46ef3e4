"""HTTP: what the front door reads and answers. Imported by the front door's stage."""
