"""Lineage: which artifacts were made from which others (trace, impact, pools, collection, verification)."""
