"""Prompts: planned, written, filtered and divided into splits."""
