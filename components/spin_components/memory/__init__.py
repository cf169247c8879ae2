"""How much memory each step with a model takes, worked out before anything is loaded; no torch is needed for it."""
