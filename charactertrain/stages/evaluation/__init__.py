"""Evaluation: the arms' replies to held-out prompts, scored, judged and probed."""
