"""A sweep: what to try, what next, the flow, the terminal."""
