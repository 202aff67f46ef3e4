"""Every plot: the canvas that they share, and functions from data to a drawing. Pages may import it."""
