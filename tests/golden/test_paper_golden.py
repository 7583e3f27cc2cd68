"""Holds the numpy reference of the `paper` format against what the authors' package computed, bit for bit.

If it fails, the description of the format (and what is built from it) no longer reads or continues the
authors' states. Needs numpy only. A NaN equals any NaN: sign and payload belong to the processor that made
it.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import paper_reference as reference
import pytest
from golden_file import Tensor, read

METADATA, TENSORS = read(Path(__file__).with_name("paper.safetensors"))
CASES: list[dict[str, Any]] = json.loads(METADATA["golden"])["cases"]
INFINITY = {"F32": 0x7F800000, "BF16": 0x7F80, "F16": 0x7C00}
FILE_TYPES = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}


def raw(tensor: Tensor) -> np.ndarray:
    """The values as the reference takes them: raw bits for 16-bit weights."""
    return tensor.array.view(np.uint16) if tensor.dtype == "F16" else tensor.array


def differences(ours: np.ndarray, theirs: np.ndarray, dtype: str) -> int:
    """How many values differ in any bit; two NaNs do not."""
    assert ours.shape == theirs.shape and ours.itemsize == theirs.itemsize
    if dtype not in INFINITY:
        return int((ours != theirs).sum())
    unsigned = np.uint32 if theirs.itemsize == 4 else np.uint16
    ours, theirs = (np.ascontiguousarray(values).view(unsigned) for values in (ours, theirs))
    magnitude = unsigned(0x7FFFFFFF if theirs.itemsize == 4 else 0x7FFF)
    both_nan = ((ours & magnitude) > INFINITY[dtype]) & ((theirs & magnitude) > INFINITY[dtype])
    return int(((ours != theirs) & ~both_nan).sum())


# The extreme inputs divide by zero and by infinity on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_steps(case: dict[str, Any]) -> None:
    """Weights, corrections, codes and scales after each stored step."""
    place = f"{case['inputs']}/{case['weight_dtype']}"
    dtype = FILE_TYPES[case["weight_dtype"]]
    bits = case["master_weight_bits"]
    corrections = None if bits is None else TENSORS[f"{place}/corrections-{bits}"].array
    gradients = raw(TENSORS[f"{place}/gradients"])
    state = reference.State.initial(case, dtype, raw(TENSORS[f"{place}/weights"]), corrections)
    expected = {
        name.removeprefix(case["name"] + "/"): tensor
        for name, tensor in TENSORS.items()
        if name.startswith(case["name"] + "/")
    }
    assert set(expected) == set(state.stored)
    for t in range(1, max(case["steps"]) + 1):
        state.step(gradients[(t - 1) % len(gradients)])
        if t not in case["steps"]:
            continue
        found = {
            key: differences(state.stored[key], tensor.array[case["steps"].index(t)], tensor.dtype)
            for key, tensor in expected.items()
        }
        assert not any(found.values()), f"step {t}: {found} of {case['numel']} differ"


@pytest.mark.parametrize("weight_dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("bits", [24, 32])
def test_corrections(weight_dtype: str, bits: int) -> None:
    """Narrow weights and corrections of fp32 values, and the way back."""
    place = f"codec/{weight_dtype}"
    dtype = FILE_TYPES[weight_dtype]
    kind = reference.NARROW[dtype]
    wide, narrow = TENSORS[f"{place}/fp32"].array, raw(TENSORS[f"{place}/weights"])
    rounded = len(wide) - 64  # the last 64 weights were deliberately not rounded from the values
    assert differences(kind.nearest(wide)[:rounded], narrow[:rounded], dtype) == 0
    corrections = TENSORS[f"{place}/corrections-{bits}"].array
    assert differences(reference.encode_corrections(wide, narrow, kind, bits), corrections, "I8") == 0
    decoded = reference.decode_weights(narrow, corrections, kind, bits)
    assert differences(decoded, TENSORS[f"{place}/decoded-{bits}"].array, "F32") == 0
    narrow = raw(TENSORS[f"{place}/decode-{bits}/weights"])
    corrections = TENSORS[f"{place}/decode-{bits}/corrections"].array
    decoded = reference.decode_weights(narrow, corrections, kind, bits)
    assert differences(decoded, TENSORS[f"{place}/decode-{bits}/decoded"].array, "F32") == 0


@pytest.mark.parametrize("letter", ["m", "v"])
def test_moments(letter: str) -> None:
    """Codes and scales of moments, and every code read under several scales."""
    place = f"codec/{letter}"
    encode, decode = {
        "m": (reference.encode_m, reference.decode_m),
        "v": (reference.encode_v, reference.decode_v),
    }[letter]
    codes, scales = encode(TENSORS[f"{place}/values"].array)
    assert differences(codes, TENSORS[f"{place}/codes"].array, "I8") == 0
    assert differences(scales, TENSORS[f"{place}/scales"].array, "F16") == 0
    for where in (place, f"{place}/decode"):
        decoded = decode(TENSORS[f"{where}/codes"].array, TENSORS[f"{where}/scales"].array)
        assert differences(decoded, TENSORS[f"{where}/decoded"].array, "F32") == 0
