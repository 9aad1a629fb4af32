#!/usr/bin/env bash
# matplotlib-inline 0.2.2 with IPython 9.18.1, matplotlib 3.11.2: a formatter for figures disappears with the first figure.
#
# A formatter of a type of its own, registered for matplotlib's Figure before anything is drawn, is meant to put what a
# figure shows beside its picture in a notebook. It is called for no figure: when the inline backend is activated, with the
# first figure, it takes Figure out of every formatter of the shell, not only out of those for the pictures that it
# offers, and says nothing. One that is registered for the base class, FigureBase, stays.
#
# Output seen:
#   registered for Figure: text/plain, image/png
#   registered for FigureBase: text/plain, image/png, application/vnd.example.points
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env"
"$work/env/bin/pip" install --quiet matplotlib-inline==0.2.2 ipython==9.18.1 matplotlib==3.11.2 ipykernel==7.4.0 nbclient==0.11.0 2>/dev/null
found=$(cd "$work" && "$work/env/bin/python" - 2>/dev/null <<'PY'
import nbformat
from nbclient import NotebookClient

CELL = """
import matplotlib.figure
from IPython.core.formatters import BaseFormatter

formatter = BaseFormatter(format_type="application/vnd.example.points", print_method="_points_")
formatter.for_type(matplotlib.figure.KIND, lambda figure: str(len(figure.axes)))
get_ipython().display_formatter.formatters[formatter.format_type] = formatter
import matplotlib.pyplot as plt
plt.plot([1, 2], [3, 4])
plt.show()
"""
for kind in ("Figure", "FigureBase"):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL.replace("KIND", kind))])
    NotebookClient(notebook).execute()
    (output,) = notebook.cells[0].outputs
    print(f"registered for {kind}: {', '.join(output.data)}")
PY
)
echo "$found"
[ "$found" = "$(sed -n 's/^#   //p' "$0")" ]
