#!/usr/bin/env bash
# numpy 2.4.6, Generator.multinomial: probabilities that differ in the sixth digit, and nearly all counts are others.
#
# Same seed, same shape: 100,000 measurements with four outcomes, 8,192 shots each; then the same with every probability
# moved by a hundred-thousandth of itself, as another processor may find it behind some layers in float32. One would
# guess that a count moves by one here and there. It does, until one draw throws away another number of random numbers
# (binomial draws reject candidates by what depends on the probability): then the rows behind it are other shots.
# Counting how many uniform numbers lie between cumulated probabilities takes as many random numbers whatever they are.
#
# So a seed need not give the same shots on two machines, and a model that computes on with what it reads from them
# says something else.
#
# Output seen:
#   numpy 2.4.6
#   multinomial: 99.7 % of rows differ, by up to 297 shots; the first by more than 20 is row 126
#   uniforms between edges, 2,000 rows: 3.8 % differ, by at most 2
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env" && "$work/env/bin/pip" install --quiet numpy==2.4.6 2>/dev/null
found=$("$work/env/bin/python" - <<'PY'
import numpy as np

p = np.random.default_rng(0).dirichlet(np.ones(4), 100_000)
moved = p * (1 + 1e-5 * np.random.default_rng(1).normal(size=p.shape))
moved /= moved.sum(1, keepdims=True)
apart = np.abs(np.subtract(*(np.random.default_rng(2).multinomial(8192, q) for q in (p, moved)))).max(1)
print("numpy", np.__version__)
print(f"multinomial: {(apart > 0).mean():.1%} of rows differ, by up to {apart.max()} shots; "
      f"the first by more than 20 is row {np.argmax(apart > 20)}".replace("%", " %"))
uniform = np.random.default_rng(2).random((2000, 8192))
below = [np.stack([(uniform < edge[:, None]).sum(1) for edge in np.cumsum(q[:2000], 1)[:, :3].T]) for q in (p, moved)]
apart = np.abs(below[0] - below[1]).max(0)
print(f"uniforms between edges, 2,000 rows: {(apart > 0).mean():.1%} differ, by at most {apart.max()}".replace("%", " %"))
PY
)
echo "$found"
[ "$found" = "$(sed -n 's/^#   //p' "$0")" ]
