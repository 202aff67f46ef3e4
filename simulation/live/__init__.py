"""The live view: what a run does, shown while it goes on, in the terminal and on a page. Imported by cli."""
