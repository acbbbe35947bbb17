"""Runs that are struck at random moments, each judged against an undisturbed one."""
