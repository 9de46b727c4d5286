#!/bin/sh
# How the images get their Python environment; the Dockerfile runs it, and so does tests/deploy on a plain machine.
#   install.sh torch PREFIX              a virtual environment with torch alone, by far the largest part
#   install.sh adaptide PREFIX EXTRAS    builds the wheel of the source in this folder and installs it there
# Versions are those of constraints.txt. pip's own variables (PIP_EXTRA_INDEX_URL, ..) say where from.
set -eu

step=${1:?torch or adaptide}
prefix=${2:?folder of the virtual environment}
python=${PYTHON:-python3}
version() { sed -n "s/^$1==/$1==/p" constraints.txt; }

case $step in
  torch)
    "$python" -m venv "$prefix"
    "$prefix/bin/pip" install -c constraints.txt "$(version torch)"
    ;;
  adaptide)
    extras=${3:?extras, such as postgres,redis}
    wheels=$(mktemp -d)
    trap 'rm -rf "$wheels"' EXIT
    "$prefix/bin/pip" wheel --no-deps --wheel-dir "$wheels" .
    set -- "$wheels"/adaptide-*.whl
    "$prefix/bin/pip" install -c constraints.txt "$1[$extras]"
    "$prefix/bin/pip" check
    ;;
  *)
    echo "install.sh: $step is no step; torch or adaptide" >&2
    exit 2
    ;;
esac
