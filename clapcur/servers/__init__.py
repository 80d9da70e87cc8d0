"""Start, watch and stop the servers of one machine."""
