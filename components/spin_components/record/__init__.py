"""What a run wrote, read back: events, decisions, history, pairs, figures."""
