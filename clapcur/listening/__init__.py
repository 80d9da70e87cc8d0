"""Pages for listening: the hits of a search, and a map of the clips of an Improvement-Set."""
