"""Faster capture of many programs: torch.export spends half of its time on recomputing one table."""

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch.export.exported_program as exporting


@contextmanager
def one_table() -> Iterator[None]:
    """Compute the table once. It is private to torch; if it is not found, captures only take longer."""
    valid = getattr(exporting, "_collect_all_valid_cia_ops", None)
    override = getattr(exporting, "_override_composite_implicit_decomp", None)
    if valid is None or override is None:
        yield
        return
    entered: set[frozenset[Any]] = set()
    with ExitStack() as stack:

        @contextmanager
        def kept(table: Any) -> Iterator[None]:
            if frozenset(table) not in entered:
                entered.add(frozenset(table))
                stack.enter_context(override(table))
            yield

        with (
            mock.patch.object(exporting, "_collect_all_valid_cia_ops", functools.cache(valid)),
            mock.patch.object(exporting, "_override_composite_implicit_decomp", kept),
        ):
            yield
