"""A checkpoint becomes ours: read its bytes, explain every tensor by a rule, place them, prove it."""
