"""The work itself: plain functions that know nothing of who runs them."""
