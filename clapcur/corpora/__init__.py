"""One file per corpus: files on disk become tables of clips, captions, labels and folds.

A corpus module knows where its files lie, which classes and folds it has, its licence and how many clips to expect.
`procedural` makes its own files: synthetic sounds, for the demonstration and for tests.
"""
