"""The recipe of docs/migration.md for the moments of bitsandbytes, run as it is printed;
skipped where that is not installed.

What a user loses if these fail: the moments of a run that was begun with bitsandbytes.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import support
import torch
from support import ADAMW, LION, SGD, Rule

PAGE = Path(__file__).resolve().parents[2] / "docs" / "migration.md"
# The widest spacing of its 8-bit codes, of a block's largest value: 64 (second moments: 128) codes
# lie evenly between 0.1 and 1.
SPACING = 0.9 / 64


def recipe() -> str:
    blocks = [part.partition("```")[0] for part in PAGE.read_text().split("```python\n")[1:]]
    [block] = [block for block in blocks if "bitsandbytes" in block]
    return block


@pytest.mark.parametrize(
    ("rule", "theirs"),
    [(ADAMW, "AdamW8bit"), (LION, "Lion8bit"), (SGD, "SGD8bit")],
    ids=["adamw", "lion", "sgd"],
)
def test_moments_of_bitsandbytes(rule: Rule, theirs: str) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes")
    shapes = ((64, 96), (40,))  # codes, and fp32 as small tensors are there
    given, ours = support.parameters(torch.float32, shapes), support.parameters(torch.float32, shapes)
    source = getattr(bitsandbytes.optim, theirs)(given, **rule.options)
    exact = rule(ours, format="fp32")
    for step in range(3):
        for p, q, g in zip(given, ours, support.gradients(given, step), strict=True):
            p.grad, q.grad = g, g.clone()
        source.step()
        exact.step()
    optimizer = rule(given)
    saved = copy.deepcopy(source.state_dict())
    with pytest.raises(ValueError, match="unknown keys"):
        optimizer.load_state_dict(saved)
    words = recipe()
    if rule is SGD:
        words = words.replace('{"1": "exp_avg", "2": "exp_avg_sq"}', '{"1": "momentum_buffer"}')
    values: dict[str, Any] = {"torch": torch, "saved": saved, "optimizer": optimizer}
    exec(compile(words, str(PAGE), "exec"), values)
    for p, q in zip(given, ours, strict=True):
        assert int(optimizer.state[p]["step"]) == 3
        for name in rule.moments:
            found, expected = (o.state[r][name].materialize() for o, r in ((optimizer, p), (exact, q)))
            bound = 3 * SPACING * float(expected.abs().max())  # rounded in each of three steps
            torch.testing.assert_close(found, expected, rtol=0, atol=bound)
    support.run(optimizer, given, 1, first=3)
