"""What one card can tell of Lockstep on GPUs: `make gpu-check`, docs/gpu-check.md."""
