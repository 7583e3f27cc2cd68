"""Reads and writes safetensors files with numpy alone, so that the golden test needs no package besides it.

It knows the container only; README.md says what the tensors mean. It trusts its input.
"""

import json
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# numpy has no bfloat16: its raw bits are held as unsigned 16-bit integers.
_NUMPY_TYPES: dict[str, type[np.generic]] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
}


class Tensor(NamedTuple):
    """A stored tensor: its safetensors dtype name and its values (raw bits for BF16)."""

    dtype: str
    array: np.ndarray


def write(path: Path, metadata: dict[str, str], tensors: dict[str, Tensor]) -> None:
    """Writes the same bytes for the same content: widest dtype first, then by name, without holes."""
    header: dict[str, Any] = {"__metadata__": metadata}
    payload = bytearray()
    for name in sorted(tensors, key=lambda key: (-tensors[key].array.itemsize, key)):
        dtype, array = tensors[name]
        if array.dtype != _NUMPY_TYPES[dtype]:
            raise TypeError(f"{name}: {array.dtype} cannot be stored as {dtype}")
        begin = len(payload)
        payload += np.ascontiguousarray(array).tobytes()
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [begin, len(payload)]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(payload))


def read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Returns the metadata and the tensors of a little-endian safetensors file."""
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    payload = content[8 + length :]
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        values = np.frombuffer(payload[begin:end], dtype=_NUMPY_TYPES[entry["dtype"]])
        tensors[name] = Tensor(entry["dtype"], values.reshape(entry["shape"]))
    return metadata, tensors
