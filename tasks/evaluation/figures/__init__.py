"""What answers are worth: a module for the rows of a kind, and the metrics as `evaluate` has them."""
