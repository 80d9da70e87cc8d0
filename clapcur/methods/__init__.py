"""Pure functions of arrays and tables: losses, metrics, similarity, thresholds, plots."""
