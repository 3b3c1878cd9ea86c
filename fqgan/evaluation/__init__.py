"""Sets of images against each other: their features, statistics kept on disk, scores, and the protocol behind them."""
