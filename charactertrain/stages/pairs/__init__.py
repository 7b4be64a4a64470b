"""Pairs: of rankings, files and reviews."""
