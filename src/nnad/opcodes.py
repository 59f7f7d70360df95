"""Read pickles as plain data, running nothing.

`pickletools` decodes a pickle into opcodes, and the small interpreter below gives meaning only to
those that build plain containers. It never imports a name and never calls anything that the file
names, so a hostile file can do no more than be refused: the two functions that the caller passes
decide what the few known names of a known file stand for.
"""

import pickletools
from collections.abc import Callable
from typing import IO, Any

MAX_OPCODES = 1_000_000  # of one pickle; a list of 50,000 file names is 100,000
_MARK = object()


class MalformedError(Exception):
    """The file is not the plain data it should be; the message says where it departs."""


def interpret(
    file: IO[bytes],
    reduce: Callable[[Any, Any], Any],
    build: Callable[[Any, Any], None] | None = None,
) -> Any:
    """Evaluate one pickle as plain data: numbers, strings, containers and what `reduce` makes.

    Args:
        file: where the pickle begins; it is left behind its end.
        reduce: (name, arguments) -> value, in place of a call; the name is "module name".
        build: takes a value of `reduce` and the state to give it; without it that is dropped.

    Raises:
        MalformedError: the pickle is cut, or needs an opcode that plain data does not; a damaged
            one may also raise whatever its nonsense leads to.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        items = []
        while (item := stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    argument: Any
    for done, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if done == MAX_OPCODES:
            raise MalformedError("too many opcodes for plain data")
        match opcode.name:
            case "PROTO":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                stack.append(_MARK)
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINUNICODE":
                stack.append(argument)
            case "BINSTRING" | "SHORT_BINSTRING":  # bytes of Python 2: a string, as Latin-1
                stack.append(argument)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode.name == "NEWTRUE")
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = int(opcode.name[-1])
                stack[-size:] = [tuple(stack[-size:])]
            case "APPEND":
                item = stack.pop()
                stack[-1].append(item)
            case "APPENDS":
                items = since_mark()
                stack[-1].extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                stack[-1][check_key(key)] = value
            case "SETITEMS":
                items = since_mark()
                keys = map(check_key, items[::2])
                stack[-1].update(zip(keys, items[1::2], strict=True))
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":  # a name stays a string: nothing is imported
                stack.append(argument)
            case "BINPERSID":  # what lies outside the pickle stays the tuple that describes it
                pass
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(reduce(check_key(function), arguments))
            case "BUILD":
                state = stack.pop()
                if build:
                    build(stack[-1], state)
            case name:
                raise MalformedError(f"opcode {name} has no place in plain data")
    raise MalformedError("the pickle ends early")


def check_key(key: Any) -> Any:
    """A key or a name: to hash or print nested tuples can take for ever, or overflow the stack."""
    if not isinstance(key, str | int):
        raise MalformedError("a key or name is neither text nor a number")
    return key
