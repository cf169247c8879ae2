"""Records, their source formats, the one chat renderer, and the collate function."""
