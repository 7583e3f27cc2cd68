"""The clip coefficient and the gradients that it belongs to."""

from collections.abc import Iterable

import torch
from torch.utils.weak import TensorWeakRef


class Clipping:
    """The coefficient of the gradients whose norm it was made from.

    `zero_grad()` of the optimizer takes it back. That of the model, or `p.grad = None`, is not told to an optimizer: so the
    coefficient is gone, too, when all of those gradients are.
    """

    def __init__(self, coefficient: torch.Tensor, gradients: Iterable[torch.Tensor]) -> None:
        self._coefficient = coefficient
        self._gradients = [TensorWeakRef(gradient) for gradient in gradients]

    def coefficient(self) -> torch.Tensor | None:
        """The coefficient while one of the gradients is left."""
        while self._gradients and self._gradients[-1]() is None:
            self._gradients.pop()
        return self._coefficient if self._gradients else None
