"""Where artifacts are kept: files, records, the catalog, leases, and the runner that makes each one once."""
