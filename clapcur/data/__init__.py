"""The kinds of artifact, one module each: what it holds, how it is written and read."""
