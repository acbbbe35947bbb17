"""Answers over HTTP: rows of many requests in one batch, each by the adapter that it names."""
