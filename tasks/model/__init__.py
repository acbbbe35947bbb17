"""The network as a person speaks of it: floors from the embeddings to the head, and rows as batches."""
