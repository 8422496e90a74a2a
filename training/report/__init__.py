"""What a set of predictions is worth: measures with their intervals, figures, a page for reviewers."""
