"""From the tokens of a category to its anomaly maps and image scores (Eq. 1-5)."""
