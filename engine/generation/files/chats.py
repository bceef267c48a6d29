"""The messages of a chat, checked, as chat templates take them."""

from collections.abc import Mapping
from typing import Any

from traces.errors import InputError, check_choice

ROLES = ("system", "developer", "user", "assistant", "tool", "function")
FIELDS = ("role", "content", "name", "tool_call_id")
"""What a template may make something of."""

EMPTY = ("tool_calls", "function_call", "audio", "refusal")
"""What a message may have if there is nothing in it."""


def as_template_takes_them(messages: Any) -> list[dict[str, Any]]:
    """Messages whose content is text. Raises InputError for what could not be honoured."""
    if not isinstance(messages, list) or not messages:
        raise InputError("messages: there must be a list of 'messages', at least one")
    return [_message(f"messages[{i}]", one) for i, one in enumerate(messages)]


def _message(where: str, message: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InputError(f"{where}: a {type(message).__name__} is no message; give an object with role and content")
    for name, value in message.items():
        if name not in (*FIELDS, *EMPTY) or (name in EMPTY and value):
            raise InputError(f"{where}.{name}: not supported; leave it out")
    check_choice(f"{where}.role", message.get("role"), ROLES)
    kept = {name: value for name, value in message.items() if name in FIELDS and name != "content"}
    return {**kept, "content": _text(f"{where}.content", message.get("content"), message["role"])}


def _text(where: str, content: Any, role: str) -> str:
    """The text of a message, its parts one after the other."""
    if isinstance(content, str):
        return content
    if content is None and role == "assistant":
        return ""
    if not isinstance(content, list) or not content:
        raise InputError(f"{where}: a {type(content).__name__} is not allowed; give a text, or a list of parts of text")
    return "".join(_part(f"{where}[{i}]", one) for i, one in enumerate(content))


def _part(where: str, part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    if kind != "text" or not isinstance(part.get("text"), str):
        raise InputError(f"{where}: {str(kind)[:40]!r} is not supported; give {{'type': 'text', 'text': ...}}")
    unknown = [name for name in part if name not in ("type", "text", "prompt_cache_breakpoint")]
    if unknown:
        raise InputError(f"{where}.{unknown[0]}: not supported; leave it out")
    return str(part["text"])
