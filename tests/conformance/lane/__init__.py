"""What every backend must do for the lane operations."""
