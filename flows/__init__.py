"""The wiring: the only place that imports prefect, and it computes nothing."""
