"""Responses: several to each prompt."""
