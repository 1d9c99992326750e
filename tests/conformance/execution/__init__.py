"""What every backend must do for the execution operations."""
