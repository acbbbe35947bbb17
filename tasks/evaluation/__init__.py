"""How good a model is, against what, and whether that is enough to promote it."""
