"""Plumbing: Ray, samplers, the training loop, DeepSpeed, checkpoints, weight sync, metrics."""
