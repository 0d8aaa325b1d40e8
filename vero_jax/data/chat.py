"""Conversations as text: `<image>` and `<video>` become picture parts, and a Jinja chat template writes the turns."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from vero_jax.errors import CountedError, UserError

IMAGE_MARKER = "<image>"
VIDEO_MARKER = "<video>"
ROLES = ("system", "user", "assistant", "tool")

QWEN_TEMPLATE = """\
{#- Turns in Qwen's format. A content is a string, or a list of parts of type text, image or video. -#}
{%- macro write(content, with_pictures) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content -%}
            {%- if part.type == 'text' -%}
                {{- part.text -}}
            {%- elif with_pictures -%}
                {{- '<|vision_start|><|' ~ part.type ~ '_pad|><|vision_end|>' -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- if tools -%}
    {{- raise_exception('this chat template has no tools') -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role in ('user', 'assistant') or (message.role == 'system' and loop.first) -%}
        {{- '<|im_start|>' ~ message.role ~ '\\n' -}}
        {{- write(message.content, message.role == 'user') -}}
        {{- '<|im_end|>\\n' -}}
    {%- else -%}
        {{- raise_exception('a turn of role ' ~ message.role ~ ' has no place here') -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
"""The template of policies built here: what Qwen3-VL's own writes for system, user and assistant turns."""


class PromptError(CountedError):
    """A question that cannot become a prompt."""


def conversation(
    messages: Sequence[Mapping[str, Any]], image_count: int, system_prompt: str = "", *, video_count: int = 0
) -> list[dict[str, Any]]:
    """Messages for a chat template, with picture parts where `<image>` and `<video>` stood.

    Args:
      messages: {"role", "content"} turns, with whatever else the template reads (tool_calls, reasoning_content). A
        content is a string with markers, or a list of parts {"type": "text", "text": ...}, {"type": "image"} or
        {"type": "video"}, in whose text markers mean nothing.
      image_count: images of the conversation; every one needs its marker or part.
      system_prompt: text put in front; before the text of a system turn if there is one already.
      video_count: likewise. Without videos `<video>` is ordinary text.

    Raises:
      PromptError: a turn is malformed, there are more or fewer markers than images, or no messages.
    """
    if not messages:
        raise PromptError("no messages", "the conversation is empty")
    turns = [_turn(number, message, video_count > 0) for number, message in enumerate(messages, start=1)]
    for kind, marker, count in (("image", IMAGE_MARKER, image_count), ("video", VIDEO_MARKER, video_count)):
        marked = sum(part["type"] == kind for turn in turns for part in turn["content"])
        if marked != count:
            raise PromptError(
                f"{kind} markers do not match the {kind}s", f"{marked} {marker} markers for {count} {kind}s"
            )
    if system_prompt and turns[0]["role"] == "system":
        turns[0]["content"] = [{"type": "text", "text": f"{system_prompt}\n\n"}, *turns[0]["content"]]
    elif system_prompt:
        turns.insert(0, {"role": "system", "content": [{"type": "text", "text": system_prompt}]})
    for turn in turns:
        if all(part["type"] == "text" for part in turn["content"]):  # templates of text-only models take no parts
            turn["content"] = "".join(part["text"] for part in turn["content"])
    return turns


def _turn(number: int, message: Mapping[str, Any], with_videos: bool) -> dict[str, Any]:
    """A checked copy of a message whose content is a list of parts."""
    if not isinstance(message, Mapping):
        raise PromptError("malformed turn", f"turn {number} is a {type(message).__name__}, not a role and a content")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise PromptError("malformed turn", f"turn {number} has role {role!r}; roles are {', '.join(ROLES)}")
    if "tool_calls" in message:
        _check_tool_calls(number, message["tool_calls"])
    if content is None and message.get("tool_calls"):
        content = ""  # a turn that only calls tools
    if isinstance(content, str):
        markers = "|".join([IMAGE_MARKER, VIDEO_MARKER] if with_videos else [IMAGE_MARKER])
        kinds = {IMAGE_MARKER: "image", VIDEO_MARKER: "video"}
        pieces = [piece for piece in re.split(f"({markers})", content) if piece]
        parts = [
            {"type": kinds[piece]} if re.fullmatch(markers, piece) else {"type": "text", "text": piece}
            for piece in pieces
        ]
    elif isinstance(content, Sequence):
        parts = [_part(number, part) for part in content]
    else:
        raise PromptError(
            "malformed turn",
            f"turn {number} has a content of type {type(content).__name__}, not text or a list of parts",
        )
    return {**message, "content": parts}


def _part(number: int, part: Any) -> dict[str, Any]:
    kind = part_kind(part)
    if kind is None:
        raise PromptError("malformed turn", f"turn {number} has a part that is no text, image or video: {part!r:.80}")
    if kind != "text":
        return {"type": kind}
    if not isinstance(part.get("text"), str):
        raise PromptError("malformed turn", f"turn {number} has a text part without a text")
    return {"type": "text", "text": part["text"]}


def part_kind(part: Any) -> str | None:
    """ "text", "image" or "video", by the type of a part or by what it holds; None when it is nothing of these."""
    if not isinstance(part, Mapping):
        return None
    kind = part.get("type", next((name for name in ("image", "video", "text") if name in part), None))
    return kind if kind in ("text", "image", "video") else None


def _check_tool_calls(number: int, calls: Any) -> None:
    if calls is not None and not isinstance(calls, list | tuple):
        raise PromptError("malformed tool call", f"tool_calls of turn {number} is a {type(calls).__name__}, not a list")
    for call in calls or ():
        call = call.get("function", call) if isinstance(call, Mapping) else call
        named = isinstance(call, Mapping) and isinstance(call.get("name"), str)
        if not named or not isinstance(call.get("arguments"), Mapping | str):
            raise PromptError(
                "malformed tool call", f"a call of turn {number} lacks a name or its arguments (an object or text)"
            )


def _check_tools(tools: Any) -> None:
    if not isinstance(tools, list | tuple):
        raise PromptError("malformed tool", f"the tools are a {type(tools).__name__}, not a list")
    for number, tool in enumerate(tools, start=1):
        inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
            raise PromptError("malformed tool", f"tool {number} has no name; a tool is a JSON schema of a function")


class ChatTemplate:
    """A Hugging Face chat template, compiled on first use in a sandbox."""

    def __init__(self, source: str, place: str = "chat template", special_tokens: Mapping[str, str] | None = None):
        """`place` names the file in errors; `special_tokens` (eos_token, ...) are the template's variables."""
        self.source = source
        self.place = place
        self._special_tokens = dict(special_tokens or {})

    def __reduce__(self) -> tuple[type, tuple[str, str, dict[str, str]]]:
        return type(self), (self.source, self.place, self._special_tokens)  # compiled templates cannot be pickled

    @functools.cached_property
    def compiled(self) -> Any:
        """The Jinja template. Raises `UserError` naming file and line where it is broken."""
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        # The settings for which Hugging Face templates are written.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = functools.partial(json.dumps, ensure_ascii=False)
        environment.globals["raise_exception"] = _raise_template_error
        try:
            return environment.from_string(self.source)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(
                f"{self.place}: the chat template is broken at line {error.lineno}: {error.message}"
            ) from error

    def render(
        self,
        turns: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The conversation as text, up to and including the header of the assistant's turn if a generation is wanted.

        Args:
          turns: of `conversation`.
          tools: JSON schemas of functions that the assistant may call.

        Raises:
          PromptError: the template refuses the conversation, or would pass over its tools in silence.
        """
        import jinja2

        if tools:
            _check_tools(tools)
            self._expect_mention("tools", "tools")
        if any(turn.get("tool_calls") for turn in turns):
            self._expect_mention("tool_calls", "tool calls")
        try:
            return self.compiled.render(
                messages=turns,
                add_generation_prompt=add_generation_prompt,
                tools=list(tools) if tools else None,
                **self._special_tokens,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            # The template is a program over the user's data: what it trips over is in there.
            raise PromptError("chat template refuses the messages", str(error)) from error

    def own_words(self) -> str:
        """What the template writes around a user's turn when it is given no system prompt."""
        try:
            return self.render([{"role": "user", "content": "?"}])
        except PromptError:  # it takes no plain text, or wants more turns: then it says nothing of its own
            return ""

    def _expect_mention(self, variable: str, words: str) -> None:
        if re.search(rf"\b{variable}\b", self.source) is None:
            raise PromptError("chat template refuses the messages", f"{self.place} has no place for {words}")


def template_with_system_prompt(source: str, text: str) -> str:
    """A chat template that begins with a system turn of this text where a conversation does not begin with one."""
    turn = "[{'role': 'system', 'content': " + ascii(text) + "}]"  # Jinja reads Python's escapes
    return (
        "{%- if not messages or messages[0].role != 'system' -%}\n"
        f"    {{%- set messages = {turn} + messages -%}}\n"
        "{%- endif -%}\n"
        f"{source}"
    )


def _raise_template_error(message: str) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(message)
