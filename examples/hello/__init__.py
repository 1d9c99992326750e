"""The smallest worker."""
