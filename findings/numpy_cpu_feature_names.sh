#!/usr/bin/env bash
# numpy 2.4.6 on x86-64: NPY_DISABLE_CPU_FEATURES with the names that processors and older numpy use does nothing.
#
# To check that a result does not depend on the processor one switches off what newer ones can do. This release chooses
# its code by level (X86_V3, X86_V4); AVX2 or AVX512F, as /proc/cpuinfo and older releases call them, are no names of
# what can be switched off. The variable is then ignored, and an ImportWarning says so, which Python does not show: a
# check of that kind passes without having checked anything.
#
# Output seen:
#   numpy 2.4.6
#   AVX2: still on, shown: ''
#   AVX2, warnings shown: You cannot disable CPU features (AVX2), since they are not part of the dispatched optimizations
#   X86_V3: off, shown: ''
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/env" && "$work/env/bin/pip" install --quiet numpy==2.4.6 2>/dev/null
ask='from numpy._core._multiarray_umath import __cpu_features__ as f; import sys; print("on" if f[sys.argv[1]] else "off")'
state() { NPY_DISABLE_CPU_FEATURES=$1 "$work/env/bin/python" -c "$ask" "$1" 2>"$work/shown"; }
found=$(
  "$work/env/bin/python" -c 'import numpy; print("numpy", numpy.__version__)'
  echo "AVX2: still $(state AVX2), shown: '$(cat "$work/shown")'"
  echo "AVX2, warnings shown: $(NPY_DISABLE_CPU_FEATURES=AVX2 "$work/env/bin/python" -W always -c "$ask" AVX2 2>&1 | grep -o 'You cannot disable .*optimizations')"
  echo "X86_V3: $(state X86_V3), shown: '$(cat "$work/shown")'"
)
echo "$found"
[ "$found" = "$(sed -n 's/^#   //p' "$0")" ]
