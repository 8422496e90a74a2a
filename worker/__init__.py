"""Takes jobs from the queue, runs the engine, writes pictures and results."""
