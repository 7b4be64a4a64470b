"""The review page: where people look at a run, judge its responses and correct its rankings."""
