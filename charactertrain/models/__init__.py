"""Models: finding, loading, the preference model's head, and saving."""
