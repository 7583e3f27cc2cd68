"""FlashOptim for PyTorch: optimizers whose weights, moments and gradients take 7 bytes per parameter."""
