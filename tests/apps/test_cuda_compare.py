"""How the benchmark on a GPU goes on where a contestant ends its process. The processes here
are made up: they need no GPU."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import json, pathlib, sys, time
arguments = sys.argv[1:]
folder = pathlib.Path(arguments[arguments.index("--folder") + 1])
without = [arguments[n + 1] for n, a in enumerate(arguments) if a == "--without"]
for name in ("ours", "exits", "breaks", "sleeps"):
    if name in without or name not in {names}:
        continue
    (folder / "turn").write_text(name)
    if name == "exits":
        sys.exit(7)
    if name == "breaks":
        (folder / "why").write_text("broke the device: an illegal address")
        sys.exit(1)
    if name == "sleeps":
        time.sleep(60)
row = dict(name="ours", ms=2.0, bytes_per_second=2e12, share=0.5)
(folder / "result.json").write_text(
    json.dumps(dict(title="a case", parameters=1000, gpu="A GPU", copy_bandwidth=4e12, rows=[row])))
"""


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import cuda_compare

    return cuda_compare


def command(*names: str) -> list[str]:
    return [sys.executable, "-c", CHILD.replace("{names}", repr(names))]


def test_a_contestant_that_ends_the_process_is_a_row_and_the_others_are_timed(compare: ModuleType) -> None:
    result = compare.run_case(command("ours", "exits", "breaks"), "a case", 60)
    assert [(row["name"], row.get("failure")) for row in result["rows"]] == [
        ("ours", None),
        ("exits", "ended the process with status 7"),
        ("breaks", "broke the device: an illegal address"),
    ]


def test_what_takes_too_long_is_said(compare: ModuleType) -> None:
    assert compare.run_case(command("sleeps"), "a case", 1) == "a case: not done in 1 s"


def test_results_are_written_with_what_was_left_out(compare: ModuleType, tmp_path: Path) -> None:
    result = compare.run_case(command("ours", "exits"), "a case", 60)
    result["rows"].append({"name": "small", "ms": 0.01})
    compare.write(tmp_path, {"torch": "2.13.0", "flashoptim": ""}, [result], ["another: no time was left"])
    document = json.loads((tmp_path / "cuda-a-gpu.json").read_text())
    assert document["results"] == [result]
    text = (tmp_path / "cuda-a-gpu.md").read_text()
    assert "| ours | 2.000 | 2,000 | 50 % |" in text
    assert "| exits | ended the process with status 7 |" in text
    assert "| small | 0.010 | in cache |" in text
    assert "flashoptim (missing)" in text
    assert "Left out: another: no time was left." in text
