"""The preference model: data, training, and what it is worth."""
