-- For the function library as the servers get it: `python -m tests.architecture.lua` assembles and checks it.
std = "lua51"
read_globals = { "redis", "server", "cjson", "cmsgpack", "bit", "struct" }
-- A function's parameters are generated from its header: its keys, its arguments, the clock.
unused_args = false
max_line_length = 120
-- A header's list of keys or arguments is one line, however long.
max_comment_line_length = false
