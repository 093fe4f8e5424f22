"""The server's process and machine: files, threads, children, open files, clocks. Knows nothing of jobs."""
