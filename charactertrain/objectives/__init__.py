"""The maths of training: tensors and floats in, tensors out; no configuration, no devices."""
