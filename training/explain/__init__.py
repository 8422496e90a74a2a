"""What a model's answers rest on: heat maps of a class folder, and the test that they follow the weights."""
