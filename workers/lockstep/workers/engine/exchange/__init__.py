"""What ranks send each other: shards and the tree that sums them, groups, connections."""
