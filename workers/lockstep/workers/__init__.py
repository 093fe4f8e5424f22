"""What runs on the cluster: launcher, actors, node agents, what they print, and the exact engine."""
