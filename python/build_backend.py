"""Builds the package by scikit-build-core, against the torch that is installed already: only
where there is none is one fetched.

An isolated build does not see what is installed, and PyPI's torch is gigabytes; its headers are all
that a build needs, and those of any version from 2.10 on make the same library.
cmake/FlashOptimPython.cmake looks in the same folder.
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
    """The requirement that brings them, if they are not there."""
    torch = Path(sysconfig.get_path("platlib")) / "torch"
    return [] if (torch / "include/torch/csrc/stable/library.h").exists() else ["torch>=2.10"]


def get_requires_for_build_wheel(settings: dict[str, str | list[str]] | None = None) -> list[str]:
    """What pip installs before it builds a wheel."""
    return [*scikit_build.get_requires_for_build_wheel(settings), *torch_headers()]


def get_requires_for_build_editable(settings: dict[str, str | list[str]] | None = None) -> list[str]:
    """What pip installs before `pip install --editable`."""
    return [*scikit_build.get_requires_for_build_editable(settings), *torch_headers()]
