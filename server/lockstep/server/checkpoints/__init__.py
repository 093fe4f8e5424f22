"""Files of checkpoints as the server reads them, and what a job starts from."""
