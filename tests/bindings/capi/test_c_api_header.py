"""What stands in c_api.h is what the C++ side and the tests know of.

What a user loses if these fail: an enumerator that means another thing in C than in C++, a struct that cannot
grow, a function whose bad arguments nobody tried.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
HEADER = ROOT / "include" / "flashoptim" / "c_api.h"
TEXT = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
ENUMERATIONS = dict(re.findall(r"typedef enum \w+ \{(.*?)\} (\w+);", TEXT, re.DOTALL))
STRUCTS = {
    name: fields for fields, name in re.findall(r"typedef struct \w+ \{(.*?)\} (\w+);", TEXT, re.DOTALL)
}
FUNCTIONS = re.findall(
    r"^(?:\w+ )+\*?(flashoptim_\w+)\(", TEXT.replace("const char* ", "const char *"), re.MULTILINE
)


def test_the_header_was_understood() -> None:
    assert len(ENUMERATIONS) == TEXT.count("typedef enum") >= 9
    assert len(STRUCTS) == len(re.findall(r"typedef struct \w+ \{", TEXT)) >= 5
    assert len(FUNCTIONS) == len(set(FUNCTIONS)) == TEXT.count(");") >= 38


def test_every_enumerator_is_asserted_beside_the_library_s() -> None:
    asserted = (ROOT / "src" / "bindings" / "capi" / "enumerators.cpp").read_text()
    for body, name in ENUMERATIONS.items():
        if name == "flashoptim_rule":
            continue  # below
        names = re.findall(r"(FLASHOPTIM_\w+)", body)
        assert names, name
        missing = [one for one in names if f"static_assert(same({one}, " not in asserted]
        assert not missing, f"src/bindings/capi/enumerators.cpp lacks {missing} of {name}"


RULES = (HEADER.parent / "rule" / "rules.h").read_text()


def test_rules_are_those_of_the_table_in_its_order() -> None:
    body = next(body for body, name in ENUMERATIONS.items() if name == "flashoptim_rule")
    names = re.findall(r'RuleTraits\{\s*Rule::k\w+, "(\w+)"', RULES)
    assert len(names) >= 5
    wanted = [(name.upper(), str(n)) for n, name in enumerate(names)]
    assert re.findall(r"FLASHOPTIM_(\w+) = (\d+)", body) == wanted


def test_hyperparameters_are_those_of_the_table_in_its_order() -> None:
    """The library reads the struct by the table: a field elsewhere would be taken for its neighbour."""
    list_of_fields = re.search(r"kHyperparameterFields = \{(.*?)\};", RULES, re.DOTALL)
    assert list_of_fields is not None
    names = dict(re.findall(r'HyperparameterField (k\w+)\{"(\w+)"', RULES))
    wanted = [names[one] for one in re.findall(r"table::(k\w+)", list_of_fields[1])]
    declared = re.findall(r"(\w+ \w+);", STRUCTS["flashoptim_hyperparameters"])
    assert [one.split()[1] for one in declared if not re.search(r" size$| reserved\d*$", one)] == wanted
    types = {"double": "number", "int32_t": "flag"}
    for one in declared:
        kind, name = one.split()
        if name in wanted:
            is_flag = f"nullptr, &Hyperparameters::{name}" in re.sub(r"\s+", " ", RULES)
            assert types[kind] == ("flag" if is_flag else "number"), name


@pytest.mark.parametrize("name", STRUCTS)
def test_every_struct_begins_with_its_size(name: str) -> None:
    first = STRUCTS[name].split(";")[0].split()
    assert first == ["size_t", "size"], f"{name} cannot grow: its first field is {first}"
    assert f"{name}_init(" in TEXT or f"{{sizeof({name})" in TEXT.replace("{ sizeof", "{sizeof").replace(
        "\\\n", ""
    ), f"nothing sets the size of {name}"


def test_every_function_stands_in_the_table_of_the_tests() -> None:
    table = (ROOT / "tests" / "bindings" / "capi" / "every_function.h").read_text()
    missing = [name for name in FUNCTIONS if not re.search(rf"\b{name}\(", table)]
    assert not missing, f"tests/bindings/capi/every_function.h lacks {missing}"


def test_no_struct_is_passed_by_value_and_no_function_is_variadic() -> None:
    """What foreign function interfaces cannot call."""
    for parameters in re.findall(r"flashoptim_\w+\(([^)]*)\);", TEXT):
        assert "..." not in parameters
        for parameter in parameters.split(","):
            words = parameter.replace("const ", "").split()
            assert words[0].rstrip("*") not in STRUCTS or "*" in parameter, parameter
    assert not re.search(r":\s*\d+;", TEXT), "a bit field"


@pytest.mark.parametrize(
    "arguments",
    [("c", "-std=c99"), ("c", "-std=c11"), ("c", "-std=c17"), ("c++", "-std=c++11"), ("c++", "-std=c++20")],
    ids=lambda arguments: arguments[1],
)
def test_it_compiles_on_its_own(arguments: tuple[str, str], tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    source = tmp_path / "user.txt"
    source.write_text(
        "#include <flashoptim/c_api.h>\n"
        "#include <flashoptim/c_api.h>\n"
        "flashoptim_tensor tensor = FLASHOPTIM_TENSOR_INIT;\n"
        "flashoptim_shard shard = FLASHOPTIM_SHARD_INIT;\n"
        "flashoptim_memory memory = FLASHOPTIM_MEMORY_INIT;\n"
        "const void* none[3] = {FLASHOPTIM_ROW_MAJOR, FLASHOPTIM_NO_SHARD, FLASHOPTIM_DEFAULT_STREAM};\n"
    )
    language, standard = arguments
    warnings = ("-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only")
    command = (compiler, f"-I{ROOT / 'include'}", standard, *warnings, "-x", language, str(source))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
