"""Examples: `code_census` is the job that `make demo` runs, `hello` is the smallest worker, and in
`transactional_enqueue` an application's change and the task it asks for are one transaction.
"""
