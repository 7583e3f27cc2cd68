"""Runs the authors' package on the CPU, in a process of its own, and answers in
files. Never imported by a test.

    python authors_worker.py TOOL REQUEST ANSWER

TOOL is authors_on_cpu.py, which lets their Triton kernels run without a GPU and changes torch for the whole
process. REQUEST is a list of jobs saved by torch.save: a rule's class name and arguments, weights, gradients
(one for each step) and, if any, a state dict to begin with. ANSWER holds for each job the weights and the
state after every step, and the last state dict.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import sys
import warnings
from typing import Any

# Torch's AVX kernels fuse the multiplication and addition of add(alpha), which
# their SGD without momentum uses.
os.environ["ATEN_CPU_CAPABILITY"] = "default"


def load_tool(path: str) -> None:
    spec = importlib.util.spec_from_file_location("authors_on_cpu", path)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def round_powers_correctly() -> None:
    """numpy's fp32 power, which the tool uses, is one unit off for 1 to 20 % of the
    steps, and a GPU's for others."""
    import numpy as np
    import triton.language as tl
    import triton.language.extra.libdevice as libdevice
    from triton.runtime.interpreter import TensorHandle

    def power(*values: Any) -> Any:
        base, exponent = (
            np.asarray(v.handle.data if isinstance(v, tl.tensor) else v, np.float64) for v in values
        )
        result = np.power(base, exponent).astype(np.float32).reshape(-1)
        return tl.tensor(TensorHandle(result, tl.float32), tl.float32)

    libdevice.pow = power


def run(job: dict[str, Any]) -> dict[str, Any]:
    import flashoptim
    import torch

    weights = [torch.nn.Parameter(w.clone()) for w in job["weights"]]
    optimizer = getattr(flashoptim, job["rule"])(weights, **job["arguments"])
    if job.get("state") is not None:
        optimizer.load_state_dict(job["state"])
    steps = []
    for grads in job["gradients"]:
        for p, g in zip(weights, grads, strict=True):
            p.grad = g.clone()
        optimizer.step()
        kept = []
        for p in weights:
            state = {"weights": p.detach().clone()}
            for key, value in optimizer.state[p].items():
                if hasattr(value, "is_quantized") and hasattr(value, "materialize"):
                    if value.is_quantized():
                        state |= {
                            f"{key}.codes": value.quantized.clone(),
                            f"{key}.scales": value.scales.clone(),
                        }
                    else:
                        state[key] = value.data.clone()
                elif isinstance(value, torch.Tensor):
                    state[key] = value.clone()
            kept.append(state)
        steps.append(kept)
    return {"steps": steps, "state": copy.deepcopy(optimizer.state_dict())}


def main() -> None:
    tool, request, answer = sys.argv[1:]
    load_tool(tool)
    round_powers_correctly()
    import torch

    warnings.simplefilter("ignore")
    torch.save([run(job) for job in torch.load(request, weights_only=False)], answer)


if __name__ == "__main__":
    main()
