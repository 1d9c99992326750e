"""The function library: how it is assembled from files, and how a function is called.

A file `lua/<concept>/<verb>.lua` is the body of one function. Its header names the keys and arguments; from that the
preamble is generated that checks them and binds them to local variables, so that nothing is counted by hand and a
malformed call is refused before anything is read. Functions carry the hash of the whole library in their names: two
versions live side by side. What must stay true: every key is checked to be of its kind and of one partition before a
body runs, and time comes from the store (in test builds, which production never loads, from the caller).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from types import NoneType
from typing import Any, Final, get_args, get_type_hints

import msgspec

from flowfabric.backends import assets
from flowfabric.backends.valkey import constants
from flowfabric.backends.valkey.record import (
    CORE,
    COUNTERS,
    FIRST,
    HEAD,
    RARE,
    RARE_FROM,
    Packed,
    PackedAttempt,
    PackedStream,
    Static,
)

PACKAGE: Final = "flowfabric.backends.valkey"
SHARED: Final = ("_base", "_sha256", "_record", "_transitions", "_fencing", "_taking")
"""Files that others build on, in this order; every other `_*.lua` follows by name."""

PARTITION_KINDS: Final[Mapping[str, str]] = {
    "execution": "x:",
    "eligible": "q:",
    "due": "due",
    "own": "own",
    "lost": "lost",
    "all": "all",
    "lanes": "lanes",
    "idempotency": "k:",
    "payload": "p:",
    "durable": "sd:",
    "summary": "ss:",
    "lossy": "sb:",
}
GLOBAL_KINDS: Final[Mapping[str, str]] = {
    "meta": "meta",
    "registry": "lanes",
    "routes": "routes:",
    "hints": "h:",
    "held": "holds",
    "bell": "bell:",
    "due_hints": "due",
    "claim": "c:",
    "workers": "workers:",
    "workerdue": "workerdue",
    "worker_due": "workerdue",
    "due_held": "dueheld",
    "defaults": "defaults",
    "libraries": "libs",
    "sweeper": "sweeper",
}
"""Kinds of keys and how they go on after the hash tag; a kind that ends in `:` is followed by a name."""

_HEADER: Final = re.compile(r"^-- (KEYS|ARGV|Refuses|Touches):[ \t]*(.*)$", re.MULTILINE)
_STRETCH: Final = re.compile(r"\$([a-z_]+)\.\.([a-z_]+)")
_ARGUMENT: Final = re.compile(r"([a-z_]+):(int|number|uuid|text|flag|rest)(\?)?")


class Argument(msgspec.Struct, frozen=True):
    """One argument of a function."""

    name: str
    type: str
    optional: bool


class Function(msgspec.Struct, frozen=True, kw_only=True):
    """One function of the library, as its file describes it."""

    name: str
    """`<concept>_<verb>`."""
    keys: tuple[str, ...]
    optional_keys: tuple[str, ...]
    repeated_keys: tuple[str, ...]
    """Kinds of any number of further keys (written `kind...`)."""
    arguments: tuple[Argument, ...]
    refuses: tuple[str, ...]
    is_global: bool
    body: str


class Library(msgspec.Struct, frozen=True, kw_only=True):
    """An assembled library."""

    name: str
    code: str
    functions: Mapping[str, Function]
    names: Mapping[str, bytes]
    """The registered name of each function."""
    manual_clock: bool


def parse(name: str, source: str) -> Function:
    """Read a function's file."""
    header = dict(_HEADER.findall(source))
    keys: list[str] = []
    optional: list[str] = []
    repeated: list[str] = []
    for word in header.get("KEYS", "").split():
        if word.endswith("..."):
            repeated.append(word[:-3])
        elif word.startswith("["):
            optional.append(word[1:-1])
        else:
            keys.append(word)
    arguments: list[Argument] = []
    for word in header.get("ARGV", "").split():
        match = _ARGUMENT.fullmatch(word)
        if match is None:
            raise ValueError(f"{name}: not an argument: {word!r}")
        arguments.append(Argument(match[1], match[2], bool(match[3])))
    named = [*keys, *optional, *repeated]
    is_global = bool(named) and named[0] in GLOBAL_KINDS
    known = GLOBAL_KINDS if is_global else PARTITION_KINDS
    unknown = [kind for kind in named if kind not in known]
    if unknown or not keys:
        raise ValueError(f"{name}: unknown keys {unknown}" if keys else f"{name}: no key is always there")
    return Function(
        name=name,
        keys=tuple(keys),
        optional_keys=tuple(optional),
        repeated_keys=tuple(repeated),
        arguments=tuple(arguments),
        refuses=tuple(header.get("Refuses", "").split()),
        is_global=is_global,
        body=source,
    )


def _test(kind: str, known: Mapping[str, str], key: str, *, wrong: bool) -> str:
    """Return the Lua condition that a key is (or is not) of its kind."""
    rest, sign = known[kind], "~=" if wrong else "=="
    if rest.endswith(":"):
        return f"string.find({key}, T['{rest}'], 1, true) {sign} 1"
    return f"{key} {sign} T['{rest}']"


def _key_lines(function: Function) -> list[str]:
    known = GLOBAL_KINDS if function.is_global else PARTITION_KINDS
    pattern = "^{w}:" if function.is_global else "^{fp:%d+}:"
    least = len(function.keys)
    lines = [f"if #keys < {least} then return malformed('keys') end"]
    lines += [
        f"local tag = string.match(keys[1], '{pattern}')",
        "if not tag then return malformed('keys') end",
        "local T = starts_of(tag)",
    ]
    for at, kind in enumerate(function.keys, start=1):
        wrong = _test(kind, known, f"keys[{at}]", wrong=True)
        lines.append(f"if {wrong} then return malformed('{kind}') end")
    bound = "".join(f", {kind} = keys[{at}]" for at, kind in enumerate(function.keys, start=1))
    further = "".join(f", {kind} = nil" for kind in function.optional_keys)
    lines.append(f"local K = {{ tag = tag{bound}{further} }}")
    if "execution" in function.keys:
        lines.append("if #K.execution ~= #tag + 38 then return malformed('execution') end")
    if function.optional_keys or function.repeated_keys:
        lines += [f"K.{kind}s = {{}}" for kind in function.repeated_keys]
        lines.append(f"for at = {least + 1}, #keys do local key = keys[at]")
        word = "if"
        for kind in function.optional_keys:
            right = _test(kind, known, "key", wrong=False)
            lines.append(f"{word} not K.{kind} and {right} then K.{kind} = key")
            word = "elseif"
        for kind in function.repeated_keys:
            right = _test(kind, known, "key", wrong=False)
            if kind == "execution":
                right += " and #key == #tag + 38"
            lines.append(f"{word} {right} then K.{kind}s[#K.{kind}s + 1] = key")
            word = "elseif"
        lines.append("else return malformed('keys') end end")
    else:
        lines.append(f"if #keys ~= {least} then return malformed('keys') end")
    return lines


_CHECKS: Final = {
    "int": "is_integer({0})",
    "number": "is_number({0}) and tonumber({0})",
    "uuid": "is_uuid({0}) and {0}",
    "flag": "({0} == '0' and 0 or {0} == '1' and 1)",
}


def _argument_lines(function: Function) -> tuple[list[str], list[str]]:
    """Return the lines that check and bind the arguments, and their names."""
    arguments = function.arguments
    rest = bool(arguments) and arguments[-1].type == "rest"
    count = len(arguments) - (1 if rest else 0)
    lines = [f"if #argv {'<' if rest else '~='} {count} then return malformed('number of arguments') end"]
    names: list[str] = []
    for at, argument in enumerate(arguments, start=1):
        name = argument.name
        names.append(name)
        if argument.type == "rest" and at == 1:
            lines.append(f"local {name} = argv")
            continue
        if argument.type == "rest":
            lines.append(f"local {name} = {{}} for at = {at}, #argv do {name}[at - {at - 1}] = argv[at] end")
            continue
        lines.append(f"local {name} = argv[{at}]")
        check = _CHECKS.get(argument.type)
        if argument.optional:
            lines.append(f"if {name} == '' then {name} = nil")
            if check is None:
                lines.append("end")
                continue
            lines.append("else")
        if check is not None:
            lines.append(f"{name} = {check.format(name)}")
            lines.append(f"if not {name} then return malformed('{name}') end")
        if argument.optional:
            lines.append("end")
    return lines, names


def expand(source: str) -> str:
    """Put the names of fields of a record, in their order, in place of `$first..last`."""
    return _STRETCH.sub(lambda match: ", ".join(_stretch(match[1], match[2])), source)


def _stretch(first: str, last: str) -> tuple[str, ...]:
    fields = Packed.__struct_fields__
    return fields[fields.index(first) : fields.index(last) + 1]


def _wrapped(function: Function, registered: str, manual_clock: bool) -> str:
    lines, names = _argument_lines(function)
    named = [*function.keys, *function.optional_keys]
    named += [f"{kind}s" for kind in function.repeated_keys]
    parameters = ", ".join(["K", "tag", "now", *named, *names])
    given = ", ".join(["K", "tag", "now", *(f"K.{kind}" for kind in named), *names])
    clock = (
        "local now = tonumber(table.remove(argv)) if not now then return malformed('clock') end"
        if manual_clock
        else "local time = redis.call('TIME') local now = time[1] * 1000 + math.floor(time[2] / 1000)"
    )
    return "\n".join(
        [
            "do",
            f"local function body({parameters})",
            expand(function.body.rstrip()),
            "end",
            f"redis.register_function('{registered}', function(keys, argv)",
            "effect_head, effect_due = false, false",
            clock,
            *_key_lines(function),
            *lines,
            f"return body({given})",
            "end)",
            "end",
        ]
    )


_CHECKING: Final = """
local STARTS, starts_known = {}, 0
local function starts_of(tag)
  local T = STARTS[tag]
  if not T then
    if starts_known >= 1024 then
      STARTS, starts_known = {}, 0
    end
    T = {}
    for _, rest in ipairs({ $STARTS }) do
      T[rest] = tag .. rest
    end
    STARTS[tag], starts_known = T, starts_known + 1
  end
  return T
end
local function malformed(what)
  return refuse('invalid_input', 'malformed call of a function: ' .. what, 'field', what)
end
local function is_number(text)
  return string.find(text, '^%-?%d+%.?%d*[eE]?[+-]?%d*$') and tonumber(text)
end
local function is_uuid(text)
  return #text == 36 and string.find(text, '^[0-9a-f%-]+$')
end
""".replace(
    "$STARTS", ", ".join(f"'{rest}'" for rest in sorted({*PARTITION_KINDS.values(), *GLOBAL_KINDS.values()}))
)
"""Checks of what a call is given. How the keys of a hash tag begin is worked out once, and kept for the latest tags."""


_BESIDE: Final = (
    "d",
    "uuid",
    "answers",
    "set",
    "packed",
    "was_vector",
    "was_attempt_id",
    "was_ready",
    "was_due",
    "was_holder",
    "was_lost",
)
"""What functions keep beside a loaded record, named at once: growing a table by steps costs more than filling it."""


_FROM_ZERO: Final = ("lease_epoch", "total_attempt_count", "history_count")
"""Fields that are 0 in the record of a new execution; the others after its head are not set."""


def _table_of(fields: Sequence[str], counters: Sequence[str] = (), beside: Sequence[str] = ()) -> str:
    """Return Lua lines that make a table of the values in the text `s`."""
    values = ", ".join(f"f{number}" for number in range(len(fields)))
    entries = [f"{field} = f{number}" for number, field in enumerate(fields)]
    entries += [f"{field} = 0" for field in counters]
    entries += [f"{field} = false" for field in beside]
    return f"local {values} = cmsgpack.unpack(s)\nreturn {{ {', '.join(entries)} }}\n"


def _packing(fields: Sequence[str]) -> str:
    return f"return cmsgpack.pack({', '.join(f'r.{field}' for field in fields)})\n"


def _layout() -> str:
    """Return the Lua constants of how records are laid out; functions of MessagePack are not there when they are made.

    `FRESH` is how the record of a new execution goes on after its head, `KEPT_FIELDS` what stays of an attempt at its
    end, behind the worker's instance.
    """
    rest = Packed.__struct_fields__[HEAD:RARE_FROM]
    fresh = "".join("\\0" if field in _FROM_ZERO else "\\192" for field in rest)
    return (
        f"local CORE, RARE, FIRST, HEAD_BYTES = {CORE}, {RARE}, {FIRST}, {2 + 9 * (HEAD - 2)}\n"
        f"local FRESH, KEPT_FIELDS = '{fresh}', {len(_stretch('worker_id', 'started_at_ms'))}\n"
    )


def _pack_head() -> str:
    """Return the Lua code that packs the fields up to `HEAD`: a number is its type and eight bytes."""
    numbers = Packed.__struct_fields__[2:HEAD]
    return (
        f"local function pack_head(form, vector, {', '.join(numbers)})\n"
        f"return struct.pack('>BB{'BI8' * len(numbers)}', form, vector, "
        f"{', '.join(f'0xCF, {field}' for field in numbers)})\nend\n"
    )


def _packing_rest(form: str, fields: Sequence[str]) -> str:
    head = ", ".join(f"r.{field}" for field in Packed.__struct_fields__[1:HEAD])
    rest = ", ".join(f"r.{field}" for field in fields)
    return f"return pack_head({form}, {head}) .. cmsgpack.pack({rest})\n"


def _accessors() -> str:
    """Return the Lua code that reads and writes packed records, in the order of their fields."""
    fields = Packed.__struct_fields__
    rare = fields[RARE_FROM:]
    is_rare = " or ".join(f"r.{field} > 0" if field in COUNTERS else f"r.{field}" for field in rare)
    return (
        _layout()
        + _pack_head()
        + "local function load(s)\nif string.byte(s) == RARE then\n"
        + _table_of(fields, beside=_BESIDE)
        + "end\n"
        + _table_of(fields[:RARE_FROM], COUNTERS, _BESIDE)
        + "end\n"
        + f"local function dump(r)\nif {is_rare} then\n"
        + _packing_rest("RARE", fields[HEAD:])
        + "end\n"
        + _packing_rest("CORE", fields[HEAD:RARE_FROM])
        + "end\n"
        + _STATICS
        + "local function read_definition(s)\n"
        + _table_of(Static.__struct_fields__)
        + _KNOWN_STATICS
        + "local function dump_attempt(r)\n"
        + _packing(PackedAttempt.__struct_fields__)
        + "end\nlocal function load_stream(s)\n"
        + _table_of(PackedStream.__struct_fields__)
        + "end\nlocal function dump_stream(r)\n"
        + _packing(PackedStream.__struct_fields__)
        + "end\n"
    )


_STATICS: Final = "local DEFINITIONS, definitions_known = {}, 0\n"
_KNOWN_STATICS: Final = """end
local function load_static(s)
  local known = DEFINITIONS[s]
  if not known then
    if definitions_known >= 1024 then
      DEFINITIONS, definitions_known = {}, 0
    end
    known = read_definition(s)
    DEFINITIONS[s], definitions_known = known, definitions_known + 1
  end
  return known
end
"""
"""Definitions are never changed, and many executions have the same: the latest are kept as they were read."""
_TAKEN: Final = ("lane", "rid", "input", "absolute_deadline_ms", "relative_deadline_ms")
"""What creating needs of a definition."""


def _static_reader() -> str:
    """Return the Lua code that reads a definition as a caller sent it: nil unless every field is of its type.

    The latest are kept, but for those that name a payload, which are all different.
    """
    fields = get_type_hints(Static)
    lines = [
        "local READ, read_known = {}, 0",
        "local function read_static(s)",
        "if READ[s] then return READ[s] end",
        f"local readable, {', '.join(fields)} = pcall(cmsgpack.unpack, s)",
        "if not readable then return nil end",
    ]
    for field, hint in fields.items():
        parts = get_args(hint) or (hint,)
        kind = {str: "string", bool: "boolean"}.get(parts[0], "number")
        wrong = f"type({field}) ~= '{kind}'"
        if kind == "number":
            whole = f" and {field} % 1 == 0" if parts[0] is int else ""
            wrong += f" or not ({field} >= 0 and {field} <= 9007199254740991{whole})"
        if NoneType in parts:
            wrong = f"{field} ~= nil and ({wrong})"
        lines.append(f"if {wrong} then return nil end")
    lines += [
        "if max_retries and not (backoff_delay_ms and (backoff_kind == 'fixed'",
        "or backoff_max_ms and backoff_multiplier)) then return nil end",
        f"local known = {{ {', '.join(f'{field} = {field}' for field in _TAKEN)} }}",
        "if input then return known end",
        "if read_known >= 1024 then READ, read_known = {}, 0 end",
        "READ[s], read_known = known, read_known + 1",
        "return known",
        "end",
    ]
    return "\n".join(lines) + "\n"


@cache
def assemble(*, manual_clock: bool = False) -> Library:
    """Assemble the library. `manual_clock` is for tests: time is then the last argument of every call."""
    folder = resources.files(PACKAGE).joinpath("lua")
    functions: dict[str, Function] = {}
    shared = {entry.name for entry in folder.iterdir() if entry.name.startswith("_")}
    for concept in sorted(entry.name for entry in folder.iterdir() if entry.is_dir()):
        for file in assets.names(PACKAGE, f"lua/{concept}"):
            if file.endswith(".lua"):
                name = f"{concept}_{file.removesuffix('.lua')}"
                functions[name] = parse(name, assets.text(PACKAGE, f"lua/{concept}/{file}"))
    order = [f"{name}.lua" for name in SHARED]
    order += sorted(shared.difference(order))
    parts = [constants.lua_tables(), _accessors(), _static_reader()]
    parts += [expand(assets.text(PACKAGE, f"lua/{file}")) for file in order]
    parts.append(_CHECKING)
    head = "\n".join(parts)
    draft = head + "\n".join(_wrapped(function, name, manual_clock) for name, function in functions.items())
    hashed = hashlib.sha256(draft.encode()).hexdigest()[:8]
    names = {name: f"ff_{hashed}_{name}" for name in functions}
    code = f"#!lua name=ff_{hashed}\n" + head
    code += "\n".join(_wrapped(function, names[name], manual_clock) for name, function in functions.items())
    return Library(
        name=f"ff_{hashed}",
        code=code + "\n",
        functions=functions,
        names={name: registered.encode() for name, registered in names.items()},
        manual_clock=manual_clock,
    )


def arguments_of(function: Function, given: Mapping[str, Any]) -> list[Any]:
    """Put arguments in the order of a function; None is sent as an empty text."""
    values: list[Any] = []
    for argument in function.arguments:
        value = given[argument.name]
        if argument.type == "rest":
            values += value
        else:
            values.append("" if value is None else int(value) if value is True or value is False else value)
    if len(given) != len(function.arguments):
        raise TypeError(f"{function.name} does not take {set(given) - {a.name for a in function.arguments}}")
    return values
