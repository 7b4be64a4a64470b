"""Rankings: of each prompt's responses, by one of several rankers."""
