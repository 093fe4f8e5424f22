"""The worker process: a Ray actor that does one assignment after another."""
