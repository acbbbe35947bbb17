"""Fine-tuning by phases: what learns when, the loop as a generator, resume to the bit."""
