"""Keeping ``caribou sql`` to reading.

The engine's own ``readonly`` setting refuses changes to tables but still lets a statement write
files (``INTO OUTFILE``, ``INSERT INTO FUNCTION file(…)``), so the statement is looked at as well.
This guards a person against a slip; what they may read is theirs to decide.
"""

from __future__ import annotations

import re

from ..errors import StoreError

__all__ = ["require_read_only"]

# What can hold any text: strings, quoted names, heredocs; and comments, which are mere spaces.
_OPAQUE = re.compile(
    r"""
      '(?:[^'\\]|\\.|'')*'
    | "(?:[^"\\]|\\.|"")*"
    | `(?:[^`\\]|\\.|``)*`
    | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$
    | (?P<comment>--[^\n]* | \#[!\s][^\n]* | /\*.*?\*/)
    """,
    re.VERBOSE | re.DOTALL,
)
_READS = frozenset({"SELECT", "WITH", "FROM", "SHOW", "DESCRIBE", "DESC", "EXPLAIN", "EXISTS"})
_OUTFILE = re.compile(r"\bINTO\s+OUTFILE\b", re.IGNORECASE)
_WRITES = re.compile(r"\bINSERT\s+INTO\b", re.IGNORECASE)
_FORMAT = re.compile(r"\bFORMAT\s+\w+\s*$", re.IGNORECASE)


def require_read_only(sql: str) -> str:
    """The statement without a closing semicolon, if it is a single one that only reads.

    Raises:
        StoreError: it is empty, holds several statements, writes, or chooses its own format.
    """
    bare = _OPAQUE.sub(lambda match: " " if match["comment"] else " ? ", sql)
    bare = bare.lstrip(" \t\r\n(").rstrip()
    word = re.match(r"\w*", bare)
    first = word[0].upper() if word else ""
    if not bare or bare == ";":
        raise StoreError("the SQL statement is empty")
    if _OUTFILE.search(bare):
        raise StoreError("INTO OUTFILE writes a file, which -o FILE does")
    if first not in _READS or _WRITES.search(bare):
        raise StoreError(f"only statements that read can be run here, such as SELECT; got {first}")
    if ";" in bare.rstrip("; \n\t"):
        raise StoreError("give one SQL statement at a time")
    if _FORMAT.search(bare.rstrip("; \n\t")):
        raise StoreError("leave out the FORMAT clause and use --format instead")
    if bare.endswith(";"):
        # The last one outside strings and comments: only comments can follow it.
        ends = [m.start() for m in re.finditer(";", _blank(sql))]
        return sql[: ends[0]]
    return sql


def _blank(sql: str) -> str:
    """``sql`` with strings and comments blanked out, at equal length."""
    return _OPAQUE.sub(lambda match: " " * len(match[0]), sql)
