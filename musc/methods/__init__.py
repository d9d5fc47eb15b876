"""Other methods on the same tokens."""
