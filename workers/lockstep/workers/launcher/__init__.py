"""The launcher: Lockstep's Ray driver, which places the workers of attempts, watches and heals them."""
