#!/usr/bin/env bash
# Makes the virtual environment: all extras, from the lock file, so that every machine runs the same versions.
# pynq builds from source; where it cannot, the rest goes on without it and says so.
set -euo pipefail
python="${PYTHON:-python3}" venv="${VENV:-.venv}"
say() { if [ -t 2 ]; then printf '\033[2m· %s\033[0m\n' "$*" >&2; else echo "· $*" >&2; fi; }

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "cannot set up Skerry: $python is not Python 3.11 or newer; install it, or run make PYTHON=/path/to/python3.11" >&2
    exit 1
fi
if [ ! -x "$venv/bin/python" ]; then
    say "making a virtual environment in $venv"
    if ! "$python" -m venv "$venv" >/dev/null 2>&1; then
        # Debian ships venv apart from Python; what it says of that would stand in the demo's JSON.
        rm -rf "$venv"
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            say "installing python3-venv"
            apt-get update -qq >/dev/null && apt-get install -y -qq --no-install-recommends python3-venv >/dev/null
            "$python" -m venv "$venv"
        else
            echo "cannot make a virtual environment: install your system's python3-venv package, then run make again" >&2
            exit 1
        fi
    fi
fi
"$venv/bin/python" -m pip install -q --disable-pip-version-check 'uv>=0.5'
lock="locks/dev.txt"
if [ "$("$venv/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')" != 3.11 ] || [ "$(uname -m)" != x86_64 ]; then
    lock="" # the lock was resolved for Python 3.11 on x86-64; elsewhere the newest versions that fit are taken
fi
say "installing Skerry with everything it can use (about 1 GB, some minutes on a slow line)"
if [ -n "$lock" ] && [ -f "$lock" ]; then
    grep -v '^pynq==' "$lock" >"$venv/lock.txt"
    "$venv/bin/uv" pip install -q --python "$venv/bin/python" -r "$venv/lock.txt"
    "$venv/bin/uv" pip install -q --python "$venv/bin/python" --no-deps -e .
else
    "$venv/bin/uv" pip install -q --python "$venv/bin/python" --group dev \
        -e '.[hub,agent,convert,onnx,openvino,postgres,simulators,train]'
fi
say "installing pynq (builds from source)"
if ! "$venv/bin/uv" pip install -q --python "$venv/bin/python" ${lock:+-c "$lock"} 'pynq==4.0.0' >"$venv/pynq.log" 2>&1; then
    echo "pynq cannot be installed here (see $venv/pynq.log): Skerry goes on without the FPGA engine" >&2
fi
