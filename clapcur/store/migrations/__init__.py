"""Migrations: how the catalog's tables became what they are, one file a step, run by `clapcur.store.database.connect`.

A change of the tables in `clapcur.store.database` is a new file ``versions/000N_what.py`` that says how to get there
from the step before, and its number in `clapcur.store.database.HEAD`. A step that was released is never edited.
"""
