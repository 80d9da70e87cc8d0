"""Migrations of the catalog's tables, one file per step, run by `clapcur.store.database.connect`.

A change of the tables in `clapcur.store.database` needs a new file ``versions/000N_what.py`` with the steps from the
previous version, and its number in `clapcur.store.database.HEAD`. A released migration is never edited.
"""
