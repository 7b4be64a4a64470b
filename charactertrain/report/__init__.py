"""The self-contained HTML report of a run, made from plain values."""
