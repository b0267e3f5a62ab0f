"""The schema of a run's tables, the folder that contains them, and the summary made from them.

A run folder contains
    run.json            the manifest: command, versions, hardware, seeds, hashes, every setting, the names of all parts
    parts/TABLE-*.parquet   the tables below, appended part by part, each part written atomically
    parts/*.json        for each finished part, the run to which it belongs and the sha256 of its files
    digest.json         of a finished run: one digest of run.json and all parts, and the digests from which it is made
    timings/*.json      time taken by each attack and each certificate of a part: the only thing that differs from run
                        to run, and therefore kept separate from the tables, which are identical byte for byte
    summary.json        made from manifest and tables: the contract for scripts (reports/schema/summary.schema.json)
Nothing here depends on models, attacks or certificates: a report can be rebuilt years later.
"""

from robustres.results.advice import advice, includes_local
from robustres.results.archive import write_archive
from robustres.results.claim import REPORT_FILES, require_own, require_own_run
from robustres.results.digits import rounded_text, share_text
from robustres.results.files import csv_text, json_text, write_atomically
from robustres.results.folder import RunFolder
from robustres.results.nearest import largest_attacked_eps, nearest_examples
from robustres.results.parts import DIAGNOSED, TRAINING, WHOLE, Parts, sha256
from robustres.results.requirement import Requirement, eps_words
from robustres.results.sandwich import Sandwich, of_network, sandwich_violations
from robustres.results.schema import (
    AVERAGE_CASE,
    MEASURED_NORMS,
    NETWORK,
    SCHEMA_VERSION,
    SMOOTHED,
    TABLES,
    empty_table,
    typed_table,
)
from robustres.results.seal import read_seal
from robustres.results.summary import block_records, certified_mask, robust_mask, summarise

__all__ = [
    "AVERAGE_CASE",
    "DIAGNOSED",
    "MEASURED_NORMS",
    "NETWORK",
    "REPORT_FILES",
    "SCHEMA_VERSION",
    "SMOOTHED",
    "TABLES",
    "TRAINING",
    "WHOLE",
    "Parts",
    "Requirement",
    "RunFolder",
    "Sandwich",
    "advice",
    "block_records",
    "certified_mask",
    "csv_text",
    "empty_table",
    "eps_words",
    "includes_local",
    "json_text",
    "largest_attacked_eps",
    "nearest_examples",
    "of_network",
    "read_seal",
    "require_own",
    "require_own_run",
    "robust_mask",
    "rounded_text",
    "sandwich_violations",
    "sha256",
    "share_text",
    "summarise",
    "typed_table",
    "write_archive",
    "write_atomically",
]
