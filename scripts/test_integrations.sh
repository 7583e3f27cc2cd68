#!/usr/bin/env bash
# Installs requirements-integrations.txt into build/integrations, an environment that sees the packages of
# .venv, and runs the tests that need it. .venv does not change.
set -euo pipefail
cd "$(dirname "$0")/.."

place=build/integrations
[ -x "$place/bin/python" ] || .venv/bin/python -m venv "$place"
packages() { "$1" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
packages "$PWD/.venv/bin/python" >"$(packages "$place/bin/python")/house.pth"
"$place/bin/python" -m pip install -q --disable-pip-version-check -r requirements-integrations.txt
exec "$place/bin/python" -m pytest -q tests/python/test_integrations.py tests/python/test_examples.py
