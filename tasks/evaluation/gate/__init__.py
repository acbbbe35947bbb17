"""Whether a model may be champion: paired tests, conditions, a verdict and its page."""
