"""The coordinator: it owns the truth about every job."""
