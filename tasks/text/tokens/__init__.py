"""From prepared rows to tokens: the vocabulary, the encoding, the packing."""
