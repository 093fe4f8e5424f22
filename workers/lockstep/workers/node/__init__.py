"""The node agent: what a machine and its GPUs do, measured there and told to the coordinator."""
