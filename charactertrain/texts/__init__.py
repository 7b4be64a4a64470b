"""What is read off a text without any model: filters, near-duplicates, measures, shortcuts."""
