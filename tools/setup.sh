#!/usr/bin/env bash
# Prepares this checkout: a virtual environment in .venv and the link under which Ansible finds the collection.
#
# tools/setup.sh ansible   ansible-core only, what `make demo` needs
# tools/setup.sh docs      that and what the documentation site is made with
# tools/setup.sh tests     that and everything the checks and tests need
#
# Does nothing when the pinned requirements are installed already. PYTHON names the interpreter to use.
set -euo pipefail
cd "$(dirname "$0")/.."

level=${1:?say which: ansible, docs or tests}
case $level in
  ansible) requirements=tests/requirements-ansible.txt ;;
  docs) requirements=tests/requirements-docs.txt ;;
  tests) requirements=tests/requirements.txt ;;
  *) echo "tools/setup.sh: no level named $level (ansible, docs, tests)" >&2; exit 2 ;;
esac

as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

# ansible-core 2.19 runs on these; a name on PATH that does not start (a pyenv shim, say) is passed over.
find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3 python3.11 python3.12 python3.13; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "No Python 3.11, 3.12 or 3.13 found: ansible-core 2.19 needs one of them. Install one, or name it: make PYTHON=/path/to/python3.11 ..." >&2
  return 1
}

make_venv() {
  local python version
  python=$(find_python)
  version=$("$python" -c 'import sys; print("{}.{}".format(*sys.version_info))')
  if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    # Debian and Ubuntu ship the module venv in a package of its own.
    if ! command -v apt-get >/dev/null; then
      echo "$python cannot make virtual environments (no module ensurepip). Install its venv package." >&2
      return 1
    fi
    echo "Installing python$version-venv: $python cannot make virtual environments without it."
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "python$version-venv" >/dev/null
  fi
  rm -rf .venv
  "$python" -m venv .venv
}

link_collection() {
  local parent=.cache/collections/ansible_collections/gpufleet
  [ "$(readlink "$parent/vllm" 2>/dev/null)" = ../../../.. ] && return
  mkdir -p "$parent"
  ln -sfn ../../../.. "$parent/vllm"
}

install_requirements() {
  local wanted stamp=.venv/.requirements-$level
  wanted=$(cat tests/requirements*.txt | sha256sum)
  [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
  echo "Installing $requirements in .venv"
  # -qq: warnings about a machine's own pip configuration are not ours; errors are still shown.
  .venv/bin/python -m pip install -qq --disable-pip-version-check -r "$requirements"
  echo "$wanted" >"$stamp"
}

.venv/bin/python -c '' 2>/dev/null || make_venv
link_collection
install_requirements
