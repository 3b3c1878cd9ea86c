"""Images in: sources, crops, sample order and loaders. Knows nothing of models."""
