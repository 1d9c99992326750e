"""What every backend must do for the attempt operations."""
