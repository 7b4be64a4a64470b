"""Of numbers alone: intervals, tests, and how far raters and rankers agree."""
