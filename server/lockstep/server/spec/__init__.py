"""What a job spec may say: its rules, its defaults, its digests, and the catalogue. Pure: no loop, no store."""
