"""The kinds of artifact, one module each: what they contain, how they are written and read."""
