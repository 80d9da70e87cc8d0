"""Ingest: a folder, a table or shards of audio and captions -> a manifest.

``scan`` looks at everything and decides, ``stage_for`` makes the stage that writes what was decided::

    config, source             what to read, the rows that come out from folders, tables, corpora and stores
    general_text               sentences of any text that describe what can be heard
    rows, shards               a record or a member of a shard -> a row
    probes                     every file hashed and checked once, remembered between runs
    exclusion                  what may never enter a pool
    scanning                   rows and probes -> clips, captions, pairs, quarantine
    writing                    the identity and the payload

The identity of a manifest is its content: which clips (by the hash of their bytes) with which recording, label and
fold, which captions, which pairs, the rules, and how many were left out for which reason. Neither a path nor the order
of rows is part of it.
"""

from clapcur.stages.ingest.config import POOL, Columns, IngestConfig, TextRules
from clapcur.stages.ingest.scanning import Scan, scan
from clapcur.stages.ingest.writing import refresh_locations, stage_for

__all__ = ["POOL", "Columns", "IngestConfig", "Scan", "TextRules", "refresh_locations", "scan", "stage_for"]
