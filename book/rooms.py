"""Draw the rooms of ``cua`` and who imports whom, from the code: ``python book/rooms.py`` writes figures/rooms.svg."""

import ast
from itertools import product
from pathlib import Path

BOOK = Path(__file__).resolve().parent
ADAPTER = (
    "config",
    "adapter",
    "readout",
    "checkpoint",
    "interop",
    "analysis",
    "cua",
)
FLOORS = (  # from the top; what is on one floor does not know its neighbours
    ("experiments",),
    ("python -m cua", "hybrid", "scaling"),
    ("llm", "quantum"),
    ("adapter",),
    ("cayley",),
)
SAYS = {
    "experiments": "what is recorded",
    "python -m cua": "from the command line",
    "hybrid": "blocks that run as circuits",
    "scaling": "models of any size",
    "llm": "no Qiskit",
    "quantum": "no transformers",
    "adapter": "config, readout, checkpoint, interop",
    "cayley": "the one formula",
}


def room(module: str) -> str:
    """``cua.llm.data`` is in ``llm``; the files beside ``adapter`` belong to it."""
    name = module.split(".")[1] if "." in module else "cua"
    name = "python -m cua" if name == "__main__" else name
    return "adapter" if name in ADAPTER else name


def modules() -> dict[str, Path]:
    """Every module of ``cua`` and its file."""
    files = (BOOK.parent / "cua").rglob("*.py")
    dotted = {
        ".".join(f.relative_to(BOOK.parent).with_suffix("").parts): f for f in files
    }
    return {name.removesuffix(".__init__"): file for name, file in dotted.items()}


def imports(file: Path) -> set[str]:
    """Dotted names that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{a.name}" for a in node.names}
    return found


def arrows() -> set[tuple[str, str]]:
    """Pairs of rooms, the first of which imports from the second."""
    known = modules()
    pairs = {
        (room(name), room(target))
        for name, file in known.items()
        for target in imports(file) & known.keys() - {"cua"}
    }
    return {(a, b) for a, b in pairs if a != b}


def shown(pairs: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Without the arrows that others imply."""
    far = set(pairs)
    for middle, (a, b) in product({a for a, _ in pairs}, list(far)):
        if b == middle:
            far |= {(a, c) for x, c in far if x == middle}
    implied = {(a, c) for a, b in pairs for x, c in far if x == b}
    return pairs - implied


def svg() -> str:
    """The drawing."""
    width, wide, high, gap = 720, 190, 46, 84
    at = {}
    for floor, names in enumerate(FLOORS):
        for i, name in enumerate(names):
            at[name] = (width * (2 * i + 1) / (2 * len(names)), 30 + gap * floor)
    drawn = []
    for a, b in sorted(shown(arrows())):
        (x1, y1), (x2, y2) = at[a], at[b]
        drawn.append(
            f'<line x1="{x1:.0f}" y1="{y1 + high / 2:.0f}" x2="{x2:.0f}" y2="{y2 - high / 2 - 3:.0f}" '
            'stroke="#555555" stroke-width="1.5" marker-end="url(#tip)"/>'
        )
    for name, (x, y) in at.items():
        drawn.append(
            f'<rect x="{x - wide / 2:.0f}" y="{y - high / 2:.0f}" width="{wide}" height="{high}" rx="6" '
            'fill="#ffffff" stroke="#0072B2" stroke-width="1.5"/>'
            f'<text x="{x:.0f}" y="{y - 3:.0f}" font-weight="bold">{name}</text>'
            f'<text x="{x:.0f}" y="{y + 14:.0f}" font-size="11">{SAYS[name]}</text>'
        )
    height = 60 + gap * (len(FLOORS) - 1)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="14" text-anchor="middle">\n'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto"><path d="M0 0L8 4L0 8z" fill="#555555"/></marker></defs>\n'
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n'
        + "\n".join(drawn)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    (BOOK / "figures" / "rooms.svg").write_text(svg())
