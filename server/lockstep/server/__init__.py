"""The server, one process: the coordinator and everything that stands around it."""
