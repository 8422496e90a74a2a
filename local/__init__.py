"""Everything on one machine: an embedded Redis, workers, the demonstration."""
