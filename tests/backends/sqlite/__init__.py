"""What is peculiar to SQLite: one file, one writer, several processes."""
