"""Fixtures of the tests of the flashoptim command."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

# Whoever starts the tests in the background or by nohup has the signals ignored that they send,
# and a command inherits that.
for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGINT):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of 60 KB, no two lines of which are the same."""
    file = tmp_path_factory.mktemp("data") / "text.txt"
    file.write_text("".join(f"{n} times {n} is {n * n}; über {n}\n" for n in range(2000)), encoding="utf-8")
    return file


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 800 KiB: one checkpoint of the tiny model fits, two do not."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=800k", "tmpfs", str(place)]
    if (
        shutil.which("mount") is None
        or subprocess.run(mount, capture_output=True, check=False).returncode != 0
    ):
        pytest.skip("a small file system cannot be mounted here (needs root)")
    yield place
    subprocess.run(["umount", str(place)], check=False)
