"""Conversations as text: `<image>` markers become picture parts, and a Jinja chat template writes the turns."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from vero_jax.errors import CountedError, UserError

IMAGE_MARKER = "<image>"

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
    messages: Sequence[Mapping[str, str]], image_count: int, system_prompt: str = ""
) -> list[dict[str, Any]]:
    """Messages for a chat template, with picture parts where `<image>` stood.

    Args:
      messages: {"role", "content"} turns.
      image_count: images of the conversation; every one needs its marker.
      system_prompt: text put in front; before the text of a system turn if there is one already.

    Raises:
      PromptError: there are more or fewer markers than images, or no messages.
    """
    if not messages:
        raise PromptError("no messages", "the conversation is empty")
    markers = sum(message["content"].count(IMAGE_MARKER) for message in messages)
    if markers != image_count:
        raise PromptError(
            "image markers do not match the images", f"{markers} {IMAGE_MARKER} markers for {image_count} images"
        )
    turns: list[dict[str, Any]] = [{"role": message["role"], "content": message["content"]} for message in messages]
    if system_prompt and turns[0]["role"] == "system":
        turns[0]["content"] = f"{system_prompt}\n\n{turns[0]['content']}"
    elif system_prompt:
        turns.insert(0, {"role": "system", "content": system_prompt})
    for turn in turns:
        if IMAGE_MARKER in turn["content"]:
            pieces = re.split(f"({IMAGE_MARKER})", turn["content"])
            turn["content"] = [
                {"type": "image"} if piece == IMAGE_MARKER else {"type": "text", "text": piece}
                for piece in pieces
                if piece
            ]
    return turns


class ChatTemplate:
    """A Hugging Face chat template, compiled on first use in a sandbox."""

    def __init__(self, source: str, place: str = "chat template", special_tokens: Mapping[str, str] | None = None):
        """`place` names the file in errors; `special_tokens` (eos_token, ...) are the template's variables."""
        self.source = source
        self._place = place
        self._special_tokens = dict(special_tokens or {})

    def __reduce__(self) -> tuple[type, tuple[str, str, dict[str, str]]]:
        return type(self), (self.source, self._place, self._special_tokens)  # compiled templates cannot be pickled

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
                f"{self._place}: the chat template is broken at line {error.lineno}: {error.message}"
            ) from error

    def render(self, turns: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True) -> str:
        """The conversation as text, up to and including the header of the assistant's turn if a generation is wanted.

        Raises:
          PromptError: the template refuses the conversation.
        """
        import jinja2

        try:
            return self.compiled.render(
                messages=turns, add_generation_prompt=add_generation_prompt, tools=None, **self._special_tokens
            )
        except jinja2.TemplateError as error:
            raise PromptError("chat template refuses the messages", str(error)) from error


def _raise_template_error(message: str) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(message)
