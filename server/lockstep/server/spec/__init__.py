"""What a job spec may say: its rules, its defaults, its digests, and the catalogue. Neither loop nor store."""
