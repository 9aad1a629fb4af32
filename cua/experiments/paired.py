"""The same questions before and after: what was corrected, what was broken, and whether the two differ by chance."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

DRAWS = 10_000


def corrected_and_broken(before: ArrayLike, after: ArrayLike) -> tuple[int, int, float]:
    """Questions that only the second got right, that only the first did, and McNemar's exact p-value.

    Were the two equally good, each of the questions on which they differ would be a fair coin: two-sided binomial test
    (McNemar 1947).  1.0 if they differ nowhere.

    Args:
        before, after: 1 for a right answer, 0 for a wrong one, in the same order.

    Raises:
        ValueError: for other values or another length.

    >>> corrected_and_broken([0, 0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 1, 0, 1])
    (5, 1, 0.21875)
    """
    before, after = (np.asarray(answers) for answers in (before, after))
    if before.shape != after.shape or not np.isin([*before, *after], (0, 1)).all():
        raise ValueError(f"answers are 1 or 0, of the same questions; got {before.shape} and {after.shape}")
    corrected, broken = int((after > before).sum()), int((before > after).sum())
    differ = corrected + broken
    return corrected, broken, float(stats.binomtest(corrected, differ).pvalue) if differ else 1.0


def mean_over_questions(values: ArrayLike) -> dict[str, Any]:
    """Mean over questions in per cent with a 95 % bootstrap interval (percentiles), as a headline number.

    Args:
        values: one a question: right or wrong, 1 or 0, or how two models differ.
    """
    return mean_over_benchmarks([values])


def mean_over_benchmarks(values: list[ArrayLike]) -> dict[str, Any]:
    """Mean of the means over several sets of questions, drawn anew within each set; else as above."""
    rng = np.random.default_rng(0)
    drawn = np.mean([_means_of_draws(np.asarray(questions), rng) for questions in values], axis=0)
    low, high = 100 * np.percentile(drawn, [2.5, 97.5])
    mean = 100 * np.mean([np.mean(questions) for questions in values])
    return {"value": mean, "low": low, "high": high, "unit": "%"}


def _means_of_draws(questions: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Means of as many questions drawn with replacement: few values occur, so how often each does is drawn."""
    values, counts = np.unique(questions, return_counts=True)
    n = len(questions)
    return rng.multinomial(n, counts / n, size=DRAWS) @ values / n
