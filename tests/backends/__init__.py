"""What is peculiar to one backend."""
