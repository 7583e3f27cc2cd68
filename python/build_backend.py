"""Builds the package with scikit-build-core, against the installed torch; fetches torch only if none is.

An isolated build does not see installed packages, and torch on PyPI is gigabytes. A build needs only torch's
headers, and the headers of any version from 2.10 on give the same library. cmake/FlashOptimPython.cmake looks
for torch in the same folder.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path

from scikit_build_core import build as scikit_build
from scikit_build_core.build import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def torch_headers() -> list[str]:
    """The requirement that provides torch's headers; empty if they are installed."""
    torch = Path(sysconfig.get_path("platlib")) / "torch"
    return [] if (torch / "include/torch/csrc/stable/library.h").exists() else ["torch>=2.10"]


def get_requires_for_build_wheel(settings: dict[str, str | list[str]] | None = None) -> list[str]:
    """The packages that pip installs before it builds a wheel."""
    return [*scikit_build.get_requires_for_build_wheel(settings), *torch_headers()]


def get_requires_for_build_editable(settings: dict[str, str | list[str]] | None = None) -> list[str]:
    """The packages that pip installs before `pip install --editable`."""
    return [*scikit_build.get_requires_for_build_editable(settings), *torch_headers()]
