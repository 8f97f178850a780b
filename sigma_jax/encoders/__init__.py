"""Pre-trained encoders of texts."""
