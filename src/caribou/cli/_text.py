"""Making any text harmless before a person or a terminal sees it.

What agents print is hostile: escape sequences recolour or rewrite a terminal, bidirectional
controls reorder what is read. Such characters are shown as what they are, never sent.
"""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["json_text", "one_line", "safe"]

# C0 without tab and newline, DEL, C1, soft hyphen, bidirectional and invisible controls, line and
# paragraph separators, lone surrogates, tags.
_HARMFUL = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f\ud800-\udfff"
)
_IN_TEXT = re.compile(f"[{_HARMFUL}]")
_IN_JSON = re.compile(f"[{_HARMFUL}]")
# Joins the parts of emoji; harmless by itself and common.
_JOINER = "\u200d"


def safe(text: str) -> str:
    """``text`` with harmful characters shown as escapes; newlines and tabs stay."""
    return _IN_TEXT.sub(_visible, text.replace("\r\n", "\n"))


def one_line(text: str, limit: int | None = None) -> str:
    """``text`` harmless and on one line, at most ``limit`` characters long."""
    if limit is not None and len(text) > 4 * limit:
        # Long contents are common and only their beginning is wanted.
        text = text[: 4 * limit]
    flat = " ".join(safe(text).split())
    if limit is not None and len(flat) > limit:
        return flat[: limit - 1] + "…"
    return flat


def json_text(value: Any) -> str:
    """Compact JSON of ``value`` in which no character can act on a terminal."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return _IN_JSON.sub(_json_escape, text)


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    if match[0] == _JOINER:
        return _JOINER
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _json_escape(match: re.Match[str]) -> str:
    return json.dumps(match[0])[1:-1] if match[0] != "\x7f" else "\\u007f"
