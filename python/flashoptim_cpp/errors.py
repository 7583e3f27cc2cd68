"""What a step may raise beside ValueError."""


class NumericsError(RuntimeError):
    """The learning rate is too small to move the weights in the precision that they are stored in."""


class NonFiniteError(RuntimeError):
    """A gradient is NaN, infinite or at least 2^48, and the policy is "error". Nothing was changed."""
