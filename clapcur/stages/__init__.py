"""The stages: each makes one artifact from others, and no stage imports another."""
