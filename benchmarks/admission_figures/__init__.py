"""The figures of admission on a real cluster."""
