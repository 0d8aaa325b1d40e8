"""Checks of layout: paragraphs, sections, bullets, titles, wrapping, JSON. Every scan is linear in the text."""

from __future__ import annotations

import re

from vero_jax.rewards.instructions.arguments import Arguments, Check, Unusable, divided
from vero_jax.rewards.language.sentences import split_sentences
from vero_jax.rewards.literals import NotData, read_json

_STARRED = re.compile(r"\*[^\n*]*\*")
_DOUBLE_STARRED = re.compile(r"\*\*[^\n*]*\*\*")
_FENCES = ("```json", "```Json", "```JSON", "```")


def placeholders(text: str, arguments: Arguments) -> bool:
    wanted = arguments.number("num_placeholders")
    count = 0
    for line in text.split("\n"):
        at = line.find("[")
        while at >= 0 and (end := line.find("]", at)) >= 0:
            count += 1
            at = line.find("[", end)
    return count >= wanted


def bullets(text: str, arguments: Arguments) -> bool:
    wanted = arguments.number("num_bullets")
    lines = [line.lstrip() for line in text.split("\n")]
    count = sum(line.startswith("-") for line in lines)
    index = 0
    while index < len(lines):
        line = lines[index]
        if line == "*" and index + 1 < len(lines):  # a lone star takes the next line as its text
            count += 1
            index += 1
        elif line.startswith("*") and line[1:2] not in ("*", ""):
            count += 1
        index += 1
    return count == wanted


def highlights(text: str, arguments: Arguments) -> bool:
    wanted = arguments.number("num_highlights")
    count = sum(bool(span.strip("*").strip()) for span in _STARRED.findall(text))
    count += sum(bool(span[2:-2].strip()) for span in _DOUBLE_STARRED.findall(text))
    return count >= wanted


def sections(text: str, arguments: Arguments) -> bool:
    splitter = arguments.text("section_spliter").strip()
    wanted = arguments.number("num_sections")
    return sum(1 for _ in re.finditer(rf"\s?{splitter}\s?\d+\s?", text)) >= wanted


def divided_paragraphs(text: str, arguments: Arguments) -> bool:
    return _paragraph_count(text, arguments.number("num_paragraphs"))


def two_divided_paragraphs(text: str, arguments: Arguments) -> bool:
    return _paragraph_count(text, 2)


def two_blank_line_paragraphs(text: str, arguments: Arguments) -> bool:
    pieces = text.split("\n\n")
    if any(not piece.strip() for piece in pieces[1:-1]):
        return False
    return sum(bool(piece.strip()) for piece in pieces) == 2


def paragraph_first_word(text: str, arguments: Arguments) -> bool:
    wanted, nth = arguments.number("num_paragraphs"), arguments.number("nth_paragraph", positive=True)
    first_word = arguments.text("first_word", empty=False).lower()
    pieces = text.split("\n\n")
    count = sum(bool(piece.strip()) for piece in pieces)
    if nth > wanted:
        raise Unusable(f"argument 'nth_paragraph' is beyond 'num_paragraphs': {nth}")
    if count != wanted or nth > count:
        return False
    words = pieces[int(nth) - 1].split()
    if not words:
        return False
    return re.split(r"[.,?!'\"]", words[0].lstrip("'").lstrip('"'), maxsplit=1)[0].lower() == first_word


def postscript(text: str, arguments: Arguments) -> bool:
    marker = arguments.text("postscript_marker", empty=False).strip()
    patterns = {"P.S.": r"p\.\s?s\.", "P.P.S": r"p\.\s?p\.\s?s"}
    return bool(re.search(patterns.get(marker, marker.lower()), text.lower()))


def title(text: str, arguments: Arguments) -> bool:
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if start >= 0 and end >= start + 3 and line[start : end + 2].lstrip("<").rstrip(">").strip():
            return True
    return False


def is_json(text: str, arguments: Arguments) -> bool:
    text = text.strip()
    for fence in _FENCES:
        text = text.removeprefix(fence)
    try:
        read_json(text.removesuffix("```").strip())
    except NotData:
        return False
    return True


def two_responses(text: str, arguments: Arguments) -> bool:
    pieces = text.split("******")
    if any(not piece.strip() for piece in pieces[1:-1]):
        return False
    answers = [piece.strip() for piece in pieces if piece.strip()]
    return len(answers) == 2 and answers[0] != answers[1]


def quotation(text: str, arguments: Arguments) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def square_brackets(text: str, arguments: Arguments) -> bool:
    return all(word.startswith("[") and word.endswith("]") for word in text.split())


def wrapped_pairs(text: str, arguments: Arguments) -> bool:
    """Words come in pairs: <<first second>>."""
    words = text.split()
    if not words or len(words) % 2:
        return False
    return all(
        (first.startswith("<<") and not first.endswith(">>") and second.endswith(">>") and not second.startswith("<<"))
        for first, second in zip(words[::2], words[1::2], strict=True)
    )


def hyphenated_sentences(text: str, arguments: Arguments) -> bool:
    """Sentences joined by hyphens without spaces."""
    pieces = text.split("-")
    return len(pieces) > 1 and all(
        piece and piece == piece.strip() and len(split_sentences(piece)) == 1 for piece in pieces
    )


def _paragraph_count(text: str, wanted: float) -> bool:
    pieces = divided(text, "***")
    return pieces is not None and len(pieces) == wanted


CHECKS: dict[str, Check] = {
    "PlaceholderChecker": placeholders,
    "BulletListChecker": bullets,
    "HighlightSectionChecker": highlights,
    "SectionChecker": sections,
    "ParagraphChecker": divided_paragraphs,
    "ParagraphBasicChecker": two_divided_paragraphs,
    "ParagraphBasicChecker2": two_blank_line_paragraphs,
    "ParagraphFirstWordCheck": paragraph_first_word,
    "PostscriptChecker": postscript,
    "TitleChecker": title,
    "JsonFormat": is_json,
    "TwoResponsesChecker": two_responses,
    "QuotationChecker": quotation,
    "SquareBracketChecker": square_brackets,
    "BiGramWrappingChecker": wrapped_pairs,
    "SentenceHyphenChecker": hyphenated_sentences,
}
