"""The report: every artifact's part of its view."""
