"""nbval compares a chapter's outputs as ``compare.py`` says, and waits for them as long as it takes."""

import pytest
from nbval.plugin import IPyNbCell

from compare import differences


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """An hour for an output to arrive, in place of five seconds, which a busy machine passes."""
    for item in items:
        if isinstance(item, IPyNbCell):
            item.output_timeout = 3600


def compare_outputs(cell: IPyNbCell, now: list, was: list, skip_compare: object = None) -> bool:
    """In place of nbval's own comparison, which is of text."""
    cell.comparison_traceback = differences(cell.cell.source, was, now)
    return not cell.comparison_traceback


IPyNbCell.compare_outputs = compare_outputs
