"""Finished runs side by side: what differs in their settings, effects, gates and texts."""
