"""One module per stage, beside the parts that it is made of; `definitions` has their order."""
