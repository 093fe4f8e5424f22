"""The buffers of a module, and what the shards of a step make of them."""
