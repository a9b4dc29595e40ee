"""The ops in plain PyTorch: any device, any dtype, differentiable."""
