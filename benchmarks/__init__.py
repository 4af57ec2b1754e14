"""Measurements of Penstock beside floors and ideals that are taken in the same run."""
