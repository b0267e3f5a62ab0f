"""The schema of a run's tables, the folder that holds them, and the summary that is made from them.

A run folder holds
    run.json            the manifest: command, versions, hardware, seeds, hashes, every setting
    parts/TABLE-*.parquet   the tables below, appended part by part, each part written atomically
    parts/*.json        for each finished part of the samples, the sha256 of its files
    timings/*.json      how long each attack and each certificate of a part took: the one thing that differs from run
                        to run, and so kept apart from the tables, which are the same byte for byte
    summary.json        made from manifest and tables: the contract for scripts (reports/schema/summary.schema.json)
Nothing here knows models, attacks or certificates: a report can be made again years later.
"""

from robustres.results.files import json_text, write_atomically
from robustres.results.folder import RunFolder
from robustres.results.nearest import largest_attacked_eps, nearest_examples
from robustres.results.sandwich import Sandwich, of_network, sandwich_violations
from robustres.results.schema import MEASURED_NORMS, SCHEMA_VERSION, SMOOTHED, TABLES, empty_table, typed_table
from robustres.results.summary import block_records, certified_mask, robust_mask, summarise

__all__ = [
    "MEASURED_NORMS",
    "SCHEMA_VERSION",
    "SMOOTHED",
    "TABLES",
    "RunFolder",
    "Sandwich",
    "block_records",
    "certified_mask",
    "empty_table",
    "json_text",
    "largest_attacked_eps",
    "nearest_examples",
    "of_network",
    "robust_mask",
    "sandwich_violations",
    "summarise",
    "typed_table",
    "write_atomically",
]
