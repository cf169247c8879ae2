"""Live view of a run: its state computed from events, and drawn in a terminal."""
