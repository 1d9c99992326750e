"""Examples: `code_census` is the job that `make demo` runs, `hello` is the smallest worker."""
