"""A census of source code: one execution per file, and one more that adds them up.

`python -m examples.code_census [DIR]` counts the lines, functions, classes and imports of every Python file under a
folder (by default the standard library of the Python that runs it), streams what it finds while it works, kills one of
its own workers half-way, and checks that the totals are those of a plain loop over the same files.
"""
