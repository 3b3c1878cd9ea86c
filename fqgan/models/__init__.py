"""Models on disk and on the hub: finding, loading, cards, fingerprints, and the layouts of released files."""
