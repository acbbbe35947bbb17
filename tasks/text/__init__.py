"""From a table of labelled text to cleaned, deduplicated, split and encoded rows."""
