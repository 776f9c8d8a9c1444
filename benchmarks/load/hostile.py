"""Hostile JSON bodies: of the largest size and full of small invalid values, yet cheap for their sender."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

Body = tuple[str, bytes]


def bodies(size_bytes: int, fields: Mapping[str, Any]) -> Iterator[Body]:
    """Yield name and bytes of JSON bodies of at most `size_bytes` bytes.

    `fields`: a valid body. Each of its fields in turn is replaced by a list, a text and an object of the full size.
    """
    room = size_bytes - len(json.dumps(fields)) - 64
    ones = "[" + "1," * (room // 2 - 1) + "1]"
    yield "list", ones.encode()
    yield "nesting", b"[" * room
    yield "objects", ("[" + "{}," * (room // 3 - 1) + "{}]").encode()
    yield "unknown fields", _many_fields(room)
    yield "text", json.dumps("x" * room).encode()
    yield "escapes", b'"' + b"\\u0000" * (room // 6) + b'"'
    yield "digits", b"9" * room
    yield "numbers", ("[" + "1e999," * (room // 6 - 1) + "1e999]").encode()
    for name in fields:
        yield f"list in {name}", _with(fields, name, ones)
        yield f"text in {name}", _with(fields, name, json.dumps("x" * room))
        yield f"fields in {name}", _with(fields, name, _many_fields(room).decode())


def _many_fields(room: int) -> bytes:
    return ("{" + ",".join(f'"{number:x}":1' for number in range(room // 10)) + "}").encode()


def _with(fields: Mapping[str, Any], name: str, text: str) -> bytes:
    others = {key: value for key, value in fields.items() if key != name}
    rest = json.dumps(others)[1:-1]
    return ("{" + (rest + "," if rest else "") + json.dumps(name) + ":" + text + "}").encode()
