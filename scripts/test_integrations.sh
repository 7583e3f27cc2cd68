#!/usr/bin/env bash
# Installs what requirements-integrations.txt names into build/integrations, which sees the packages of .venv, and runs the
# tests that need it. .venv stays as it is.
set -euo pipefail
cd "$(dirname "$0")/.."

place=build/integrations
[ -x "$place/bin/python" ] || .venv/bin/python -m venv "$place"
packages() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
packages "$PWD/.venv/bin/python" >"$(packages "$place/bin/python")/house.pth"
"$place/bin/python" -m pip install -q --disable-pip-version-check -r requirements-integrations.txt
exec "$place/bin/python" -m pytest -q tests/python/test_integrations.py tests/python/test_examples.py
