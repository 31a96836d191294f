"""Says where tensors are. Parses bytes; moves none."""
