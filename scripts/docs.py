"""The documents and the API reference as HTML, in build/docs/html: Doxygen reads the public headers, Sphinx
makes the pages.

A warning of either is an error, and so is a public function without a doc comment. `lint.py` calls the part
that needs Doxygen alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "build" / "docs"
XML = OUTPUT / "xml"


def is_documented(function: ElementTree.Element) -> bool:
    """Whether a function has a doc comment. Constructors may leave that to their class, overrides to their
    base, operators to the language."""
    returned = function.find("type")
    if returned is None or not "".join(returned.itertext()):
        return True
    if function.findtext("name", "").startswith("operator"):
        return True
    if function.findtext("argsstring", "").rstrip("=0 ").endswith("override"):
        return True
    descriptions = (function.find(f"{kind}description") for kind in ("brief", "detailed"))
    return any("".join(text.itertext()).strip() for text in descriptions if text is not None)


def undocumented() -> list[str]:
    """Public functions of the headers without a doc comment, each with its place."""
    found = set()
    for file in XML.glob("*.xml"):
        for function in ElementTree.parse(file).iter("memberdef"):
            place = function.find("location")
            if function.get("kind") != "function" or function.get("prot") != "public" or place is None:
                continue
            if not is_documented(function):
                found.add(f"{place.get('file')}:{place.get('line')}: {function.findtext('name')}()")
    return sorted(found)


def doxygen() -> bool:
    """Reads the doc comments of the public headers into XML; true where nothing is wrong with them."""
    shutil.rmtree(XML, ignore_errors=True)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["doxygen", "docs/Doxyfile"], cwd=ROOT, check=False).returncode != 0:
        return False
    for place in (missing := undocumented()):
        print(f"include/{place} has no doc comment: say what it does, takes, returns and throws")
    # Breathe would print each namespace again for each header.
    for file in XML.glob("*_8h.xml"):
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        file.write_text("".join(line for line in lines if "<innernamespace" not in line), encoding="utf-8")
    return not missing


def sphinx() -> bool:
    """Makes the pages, all of them: Breathe fails where a file of XML that it has seen is gone."""
    shutil.rmtree(OUTPUT / "doctrees", ignore_errors=True)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    folders = ["-d", str(OUTPUT / "doctrees"), "docs", str(OUTPUT / "html")]
    # The package as the preset `release` builds it.
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "build" / "release" / "python")}
    return subprocess.run([*command, *folders], cwd=ROOT, env=environment, check=False).returncode == 0


def main() -> int:
    if not (doxygen() and sphinx()):
        return 1
    print(f"docs: open {(OUTPUT / 'html' / 'index.html').relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
