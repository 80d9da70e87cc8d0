"""Storage of artifacts: files, records, the catalog, leases, and the runner that computes each artifact once."""
