"""From an evaluation's rows to what it says: effects, attribution, gates, preferences."""
