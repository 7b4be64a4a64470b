"""Traits: the constitution's, as rows."""
