"""nbval compares a chapter's outputs as ``compare.py`` says: numbers as numbers, figures by what they show."""

from nbval.plugin import IPyNbCell

from compare import differences


def compare_outputs(cell: IPyNbCell, now: list, was: list, skip_compare: object = None) -> bool:
    """In place of nbval's own comparison, which is of text."""
    cell.comparison_traceback = differences(cell.cell.source, was, now)
    return not cell.comparison_traceback


IPyNbCell.compare_outputs = compare_outputs
