"""Ingest: a folder, a table or shards of audio and captions -> a manifest.

``scan`` reads everything and decides, ``stage_for`` returns the stage that writes the result::

    config, source             what to read; the rows of folders, tables, corpora and object stores
    general_text               sentences of any text that describe what can be heard
    rows, shards               a record or a member of a shard -> a row
    probes                     every file hashed and checked once, remembered between runs
    exclusion                  clips that must never enter a pool
    scanning                   rows and probes -> clips, captions, pairs, quarantine
    writing                    identity and payload

The identity of a manifest is its content: clips (by the hash of their bytes) with recording, label and fold; captions;
pairs; the rules; and the numbers of rows that were left out, by reason. Neither paths nor the order of rows are part
of it.
"""

from clapcur.stages.ingest.config import POOL, Columns, IngestConfig, TextRules
from clapcur.stages.ingest.scanning import Scan, scan
from clapcur.stages.ingest.writing import refresh_locations, stage_for

__all__ = ["POOL", "Columns", "IngestConfig", "Scan", "TextRules", "refresh_locations", "scan", "stage_for"]
