"""Figures, pictures and pages of a run, from its CSV and JSON alone."""
