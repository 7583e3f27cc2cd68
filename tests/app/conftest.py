"""Fixtures of the tests of the flashoptim command."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of 60 KB, no two lines of which are the same."""
    file = tmp_path_factory.mktemp("data") / "text.txt"
    file.write_text("".join(f"{n} times {n} is {n * n}; über {n}\n" for n in range(2000)), encoding="utf-8")
    return file
