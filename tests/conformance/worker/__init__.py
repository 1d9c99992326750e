"""What every backend must do for the worker operations."""
