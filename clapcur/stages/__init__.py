"""The stages: each makes one artifact out of others, and none imports another."""
