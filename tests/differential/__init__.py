"""Random scripts on two stores: every backend must do what the rules, run by SQLite, do."""
