"""What `make test` counts and names where a test executable runs its cases in one process. If these fail, a
test that failed goes unseen, or nobody learns which one it was."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import check

CASES = """<testsuites><testsuite name="Sums">
  <testcase name="Add" classname="Sums" status="run" result="completed" time="0.5"/>
  <testcase name="Overflow/0" classname="All/Sums" status="run" result="completed" time="1">
    <failure message="wrong"/></testcase>
  <testcase name="OnGpu" classname="Sums" status="run" result="skipped" time="0"><skipped/></testcase>
</testsuite></testsuites>"""


def outcomes(folder: Path, status: str, output: str = "", cases: str = "") -> list[tuple[str, str]]:
    """What is counted for a test `sums_test.1` that ctest reports with this status and output."""
    if cases:
        (folder / "sums_test.1.xml").write_text(cases)
    failure = "<failure/>" if status == "fail" else ""
    case = ElementTree.fromstring(
        f'<testcase name="sums_test.1" classname="sums_test.1" time="2" status="{status}">'
        f"{failure}<system-out>{output}</system-out></testcase>"
    )
    return [(step.name, step.outcome) for step in check.steps_of("ctest", case, folder)]


def test_each_case_of_a_process_counts(tmp_path: Path):
    assert outcomes(tmp_path, "fail", cases=CASES) == [
        ("ctest: sums_test.Sums.Add", "passed"),
        ("ctest: sums_test.All/Sums.Overflow/0", "failed"),
        ("ctest: sums_test.Sums.OnGpu", "skipped"),
    ]


@pytest.mark.parametrize("status", ["run", "fail"])
def test_a_process_that_fails_after_its_cases_counts(tmp_path: Path, status: str):
    passed = "<testsuites><testsuite><testcase name='Add' classname='Sums'/></testsuite></testsuites>"
    whole = [("ctest: sums_test.1", "failed")] if status == "fail" else []
    assert outcomes(tmp_path, status, cases=passed) == [("ctest: sums_test.Sums.Add", "passed"), *whole]


def test_a_process_without_cases_is_no_pass_of_nothing(tmp_path: Path):
    assert outcomes(tmp_path, "fail", cases="<testsuites/>") == [("ctest: sums_test.1", "failed")]


def test_the_case_that_a_process_died_in_is_named(tmp_path: Path):
    output = "[ RUN      ] Sums.Add\n[       OK ] Sums.Add (0 ms)\n[ RUN      ] Sums.Overflow\n"
    assert outcomes(tmp_path, "fail", output) == [("ctest: sums_test.1 in Sums.Overflow", "failed")]


def test_a_test_without_cases_counts_as_one(tmp_path: Path):
    assert outcomes(tmp_path, "run") == [("ctest: sums_test.1", "passed")]
    assert outcomes(tmp_path, "fail") == [("ctest: sums_test.1", "failed")]
