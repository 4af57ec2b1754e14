"""Repeated-run evaluation: the same jobs again and again, effects only simulated, and what differs between runs."""
