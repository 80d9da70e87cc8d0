"""The old name of `clapcur.methods.contamination`, kept because users' scripts import it."""

from clapcur.methods.contamination import overlap as overlap
