"""The old name of `clapcur.methods.contamination`, which scripts of users import."""

from clapcur.methods.contamination import overlap as overlap
