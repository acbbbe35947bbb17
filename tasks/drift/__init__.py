"""What new rows have in common with those that were trained on: statistics, and a page that tells them."""
