"""What every backend must do for the stream operations."""
