"""What both ends of the queue agree on; neither torch nor numpy."""
