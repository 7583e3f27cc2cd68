"""Settings of Sphinx, which makes build/docs/html of the documents here and of the doc comments. `make docs`
runs it."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

project = "flashoptim.cpp"
[release] = [
    line.split('"')[1]
    for line in (ROOT / "include" / "flashoptim" / "version.h").read_text(encoding="utf-8").splitlines()
    if line.startswith("#define FLASHOPTIM_VERSION_STRING")
]
version = release

extensions = ["breathe", "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
myst_heading_anchors = 3

# C++ and C: from Doxygen's XML.
breathe_projects = {project: str(ROOT / "build" / "docs" / "xml")}
breathe_default_project = project
breathe_domain_by_file_pattern = {"*/c_api.h": "c"}

# Python: from the package that PYTHONPATH names.
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
