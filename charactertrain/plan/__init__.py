"""Sizing a run before it is made: tokens, hours, memory and storage from its config alone."""
