#!/usr/bin/env bash
# Creates the virtual environment $1 with Modelyard in it, at the versions of requirements.lock.
set -euo pipefail
venv=$1

fits() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

can_make_venvs() {
    "$1" -c 'import ensurepip, venv' 2>/dev/null
}

find_python() {
    local name
    for name in python3.13 python3.12 python3.11 python3; do
        if fits "$name" && can_make_venvs "$name"; then
            echo "$name"
            return
        fi
    done
    return 1
}

give_up() {
    cat >&2 <<'TEXT'
Modelyard needs Python 3.11 or newer with the modules venv and ensurepip.
On Debian or Ubuntu, root installs them with: apt-get install python3 python3-venv
TEXT
    exit 1
}

if ! python=$(find_python); then
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || give_up
    echo "Installing with apt-get: python3, python3-venv (run Modelyard)"
    apt-get update -q >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
        python3 python3-venv </dev/null >/dev/null
    python=$(find_python) || give_up
fi

if ! fits "$venv/bin/python"; then
    echo "Making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
fi

echo "Installing Modelyard and its tools into $venv"
pip=("$venv/bin/python" -m pip install -qq --disable-pip-version-check)
"${pip[@]}" --constraint requirements.lock --editable '.[dev]'
# A mongod for the local stack, unless the machine has one.
command -v mongod >/dev/null || "${pip[@]}" --requirement deploy/local/requirements.txt
