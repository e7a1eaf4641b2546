"""Mutants of what people may hand over: text, bytes, and the data that YAML and JSON hold."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

SCALARS: Sequence[Any] = (
    None,
    True,
    False,
    *(0, -0.0, 1, -1, 3, 64, 1000, 10**6, 10**9, 10**12, 2**63, 10**30, 10**400),
    *(0.5, 1e-300, 1e308, -1e308, math.inf, -math.inf, math.nan),
    *("", " ", "a", "0", "\0", "é\u202e😀", "x" * 5000, "\x1b[31m", "%s", "{0}", "~", "none", "null", "yes"),
    *("../../etc/passwd", "/etc/passwd", "/dev/null", "/dev/zero", "a/b", "..", ".", "/", "a.yaml", "this_machine"),
    *(
        "5 GB",
        "-5 GB",
        "0 B",
        "-0 s",
        "0 s",
        "5 s",
        "1e-400 s",
        "1e308 TB",
        "1e999 GB",
        "1e999999 GB",
        "5 gb",
        "5 Gb",
    ),
    *("nan s", "inf s", "NaN", "1_0 GB", "1__0 GB", "١٢ GB", "150 %", "-3 %", "1e309 %", "0 GB/s", "3 GB/s", "20B"),
    *("0 TFLOP/s", "5 kIOPS", "0 IOPS", "0 W", "-2 USD/h", "1e300 USD/h", "2020-01-01", "< 5 s", "<= nan s", "<"),
    [],
    {},
    [[]],
    [1],
    ["a"],
    {"a": 1},
    {"value": "5 s", "low": "6 s", "high": "4 s"},
    [None],
    {"": ""},
)
FRAGMENTS: Sequence[str] = (
    *("&a [*a]", "&a {b: *a}", "*a", "!!python/object:os.system x", "!!binary aGFsbG8=", "!!timestamp 2020-13-45"),
    *("2026-13-45", "2026-02-30", "0o9", "0x", "1_000", "!!int x", "!!float x", "!!bool x", "!!null x", "!!str"),
    *(
        "!foo bar",
        "<<: {a: 1}",
        "<<: 3",
        "? [a]",
        "[a]: 1",
        "{a: 1}: 2",
        "%YAML 9.9",
        "---\n...\n---",
        "|\n",
        ">\n",
    ),
    *("'", '"', "\t", "\0", "\ufeff", "\x85", "\u2028", "~", "{", "[", "}", "]", "@", "`", "#", ":", "- -", "? "),
    *("!!set {a}", "!!omap [a: 1]", "9" * 5000, "1e" + "9" * 50, "12:30:45", ".inf", ".nan", "0b", "1e1000000000"),
    *("!!merge x", "&a &b c", "* ", "&", "!<tag:yaml.org,2002:int> a", "[" * 3000, "{a: " * 800),
)


def value_text(rng: random.Random) -> str:
    """Return what may stand behind ``--set PATH=``."""
    chance = rng.random()
    if chance < 0.35:
        return rng.choice(FRAGMENTS)
    if chance < 0.9:
        return str(rng.choice([scalar for scalar in SCALARS if scalar != 10**400]))
    letters = "0123456789eE.+-_ kMGTPiBbits/%{}[]:,&*!'\"\t\n<>=~"
    return "".join(rng.choice(letters) for _ in range(rng.randrange(1, 14)))


def paths(data: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every part of nested lists and mappings."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, item in items:
        yield (*at, key)
        yield from paths(item, (*at, key))


def get(data: Any, path: Sequence[Any]) -> Any:
    """Return the part of nested data at a path."""
    for key in path:
        data = data[key]
    return data


def mutate_data(rng: random.Random, data: Any, keys: Sequence[str] = ()) -> Any:
    """Return nested data with one to three parts replaced, removed, copied elsewhere, added, or wrapped."""
    data = copy.deepcopy(data)
    for _ in range(rng.choice([1, 1, 1, 1, 2, 3])):
        found = list(paths(data))
        if found:
            # parts near the top as likely as those further down
            depth = rng.choice(sorted({len(path) for path in found}))
            _change(rng, data, rng.choice([path for path in found if len(path) == depth]), keys)
    return data


def _change(rng: random.Random, data: Any, path: Sequence[Any], keys: Sequence[str]) -> None:
    parent, key = get(data, path[:-1]), path[-1]
    chance = rng.random()
    if chance < 0.62:
        parent[key] = copy.deepcopy(rng.choice(SCALARS))
    elif chance < 0.72:
        del parent[key]
    elif chance < 0.8:
        parent[key] = copy.deepcopy(get(data, rng.choice(list(paths(data)))))
    elif chance < 0.86 and isinstance(parent, dict):
        parent[rng.choice(["zzz", "", "a.b", "0", "schema", "x" * 300, *keys])] = copy.deepcopy(rng.choice(SCALARS))
    elif chance < 0.94:
        parent[key] = _near(rng, parent[key])
    else:
        parent[key] = [parent[key]] if rng.random() < 0.5 else {"value": parent[key]}


def _near(rng: random.Random, value: Any) -> Any:
    """Return a value that looks like the one there was."""
    if isinstance(value, str) and value:
        at = rng.randrange(len(value))
        return value[:at] + rng.choice(["", "-", "e9", "0", " ", "é", ".", "9" * 20, "%"]) + value[at + 1 :]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return rng.choice([-value, value * 10**6, value * 0, str(value), value + 1, value * 10**12, [value]])
    return None


def mutate_text(rng: random.Random, text: str) -> str:
    """Return text with lines and characters changed."""
    for _ in range(rng.choice([1, 1, 2, 4])):
        lines = text.split("\n")
        at = rng.randrange(len(lines))
        chance = rng.random()
        if chance < 0.25:
            head, colon, _ = lines[at].partition(":")
            lines[at] = f"{head}{colon} {rng.choice(FRAGMENTS)}"
        elif chance < 0.35:
            lines.insert(at, rng.choice(FRAGMENTS))
        elif chance < 0.45:
            del lines[at]
        elif chance < 0.6:
            lines[at] = rng.choice([" ", "\t", "- ", "? ", "! ", "&x ", "*x "]) + lines[at]
        text = "\n".join(lines)
        if chance >= 0.6:
            at = rng.randrange(len(text) + 1)
            put = rng.choice(["", *"{}[]:,-#&*!|>'\"%@`\t\n\0 9e.~?", "\ufeff", "é", "\ud7ff", "<<: *x", "\x07"])
            text = text[:at] + put + text[at + rng.choice([0, 1, 1, 5, 50]) :]
    return text


def mutate_bytes(rng: random.Random, content: bytes) -> bytes:
    """Return bytes with bits flipped, bytes replaced, cut out or put in."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 3, 10])):
        at = rng.randrange(len(changed)) if changed else 0
        chance = rng.random()
        if chance < 0.6 and changed:
            changed[at] ^= 1 << rng.randrange(8)
        elif chance < 0.8 and changed:
            changed[at] = rng.randrange(256)
        elif chance < 0.9:
            del changed[at : at + rng.choice([1, 4, 100, len(content)])]
        else:
            changed[at:at] = bytes(rng.randrange(256) for _ in range(rng.choice([1, 8])))
    return bytes(changed)
