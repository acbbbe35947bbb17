"""From encoded rows to a model's answers."""
