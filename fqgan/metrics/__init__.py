"""Metrics: they take features, codes or images, never a model, and accumulate with `update` and `compute`."""
