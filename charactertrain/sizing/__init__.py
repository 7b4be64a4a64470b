"""The maths of sizing: what a model, its training and its engines take, in bytes and seconds."""
