"""Many fine-tunings side by side: what each came to, in order, in a picture, on a page."""
