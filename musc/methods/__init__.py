"""Other methods on the same tokens, each in a file of its own, with one interface: `base.Method`."""
