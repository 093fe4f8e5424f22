"""The cluster under the coordinator: the embedded Ray, the launcher, and what is known of nodes."""
