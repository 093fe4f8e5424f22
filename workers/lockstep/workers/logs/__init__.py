"""From what a worker prints to the coordinator: a file on the node, and what reads and delivers it."""
