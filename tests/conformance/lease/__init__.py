"""What every backend must do for the lease operations."""
