"""The boards of Lockstep, one module each."""
