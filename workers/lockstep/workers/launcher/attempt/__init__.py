"""What becomes of an attempt of a job: a pure function of what happens, without threads, Ray or a clock."""
