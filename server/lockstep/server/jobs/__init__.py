"""A job: its states, its lifecycle, what workers report of it. Pure: no loop, no store."""
