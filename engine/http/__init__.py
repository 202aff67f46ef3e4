"""HTTP: what the front door reads and answers. Imported by the stages, and by the server for its socket."""
