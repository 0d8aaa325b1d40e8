"""MMIFEval's text rules by the names that its rows give them (`verify_funcs`), nothing else is ever called."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from vero_jax.rewards.language.sentences import split_sentences

MAX_LENGTH = 200_000
_PARAGRAPH = re.compile(r"\n\s*\n")
_WORD = re.compile(r"\b\w+(?:['’-]\w+)*\b")
_NUMBER = re.compile(
    r"(?<![\w.,])-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.(?P<decimals>\d+))?(?:[eE][-+]?\d+)?(?!\w)|(?P<bare>\.\d+)", re.ASCII
)
# Every repetition is bounded, or has one place to begin: what a model writes must not make a search quadratic.
_PERCENTAGE = re.compile(r"(?<!\d)\d{1,40}(?:,\d{3}){0,12}(?:\.(?P<decimals>\d{1,40}))?\s{0,9}%", re.ASCII)
_FREE_NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3}){0,12}(?:\.\d+)?(?![\w.])", re.ASCII)


class UnknownRule(ValueError):
    """A row names a rule, or gives it parameters, that does not exist."""


def check(name: str, text: str, parameters: Sequence[Any]) -> bool:
    """Does `text` keep a rule?

    Raises:
      UnknownRule: no rule has this name, or not with these parameters.
    """
    rule = RULES.get(name)
    if rule is None:
        raise UnknownRule(f"no rule is called {name!r}")
    try:
        return bool(rule(text[:MAX_LENGTH], *parameters))
    except (TypeError, ValueError, AttributeError) as error:
        raise UnknownRule(f"{name} can't be used with {list(parameters)!r:.200} ({error})") from None


def paragraphs(text: str) -> list[str]:
    """Parts between blank lines; an empty text has none."""
    return [part.strip() for part in _PARAGRAPH.split(text.strip()) if part.strip()]


def words(text: str) -> int:
    """Words; one with an apostrophe or a hyphen in it is one word."""
    return len(_WORD.findall(text))


def _within(count: int, lowest: int, highest: int) -> bool:
    return lowest <= count <= highest


def _sentence_count(text: str) -> int:
    return len(split_sentences(text))


def _paragraph_number(text: str, lowest: int, highest: int) -> bool:
    return _within(len(paragraphs(text)), lowest, highest)


def _sentence_number(text: str, lowest: int, highest: int) -> bool:
    return _within(sum(map(_sentence_count, paragraphs(text))), lowest, highest)


def _sentences_of_each_paragraph(text: str, lowest: int, highest: int) -> bool:
    return all(_within(_sentence_count(part), lowest, highest) for part in paragraphs(text))


def _sentences_by_paragraph(text: str, ranges: Sequence[Sequence[int]]) -> bool:
    found = paragraphs(text)
    return len(found) == len(ranges) and all(
        _within(_sentence_count(part), *limits) for part, limits in zip(found, ranges, strict=True)
    )


def _word_count(text: str, lowest: int, highest: int) -> bool:
    return _within(words(text), lowest, highest)


def _words_of_each_paragraph(text: str, lowest: int, highest: int) -> bool:
    return all(_within(words(part), lowest, highest) for part in paragraphs(text))


def _words_by_paragraph(text: str, ranges: Sequence[Sequence[int]]) -> bool:
    found = paragraphs(text)
    return len(found) == len(ranges) and all(
        _within(words(part), *limits) for part, limits in zip(found, ranges, strict=True)
    )


def _contains_none(text: str, forbidden: Sequence[str]) -> bool:
    return not any(part in text for part in forbidden)


def _contains_not(text: str, forbidden: str) -> bool:
    return forbidden not in text


def _sentences(text: str) -> list[str]:
    return [sentence.strip() for part in paragraphs(text) for sentence in split_sentences(part)]


def _each_sentence_begins(text: str, start: str) -> bool:
    return all(sentence.startswith(start) for sentence in _sentences(text))


def _each_sentence_ends(text: str, end: str) -> bool:
    return all(sentence.endswith(end) for sentence in _sentences(text))


def _each_paragraph_begins(text: str, start: str) -> bool:
    return all(part.startswith(start) for part in paragraphs(text))


def _each_paragraph_ends(text: str, end: str) -> bool:
    return all(part.endswith(end) for part in paragraphs(text))


def _begins(text: str, start: str) -> bool:
    return text.strip().startswith(start)


def _ends(text: str, end: str) -> bool:
    return text.strip().endswith(end)


def _mentions(text: str, keyword: str) -> int:
    return len(re.findall(rf"\b{re.escape(keyword)}\b", text, re.IGNORECASE))


def _each_keyword(text: str, keywords: Sequence[str], lowest: int, highest: int) -> bool:
    return all(_within(_mentions(text, keyword), lowest, highest) for keyword in keywords)


def _all_keywords(text: str, keywords: Sequence[str], lowest: int, highest: int) -> bool:
    return _within(sum(_mentions(text, keyword) for keyword in keywords), lowest, highest)


def _percentage_precision(text: str, digits: int) -> bool:
    return all(len(match.group("decimals") or "") == digits for match in _PERCENTAGE.finditer(text))


def _number_precision(text: str, digits: int) -> bool:
    return all(
        not match.group("bare") and len(match.group("decimals") or "") == digits for match in _NUMBER.finditer(text)
    )


def _no_number(text: str) -> bool:
    """Numbers that stand free; neither a digit in "v2" or "3rd" nor the "1." of a list counts."""
    return not _FREE_NUMBER.search(text)


RULES: dict[str, Callable[..., bool]] = {
    "check_whether_response_paragraph_number_in_range": _paragraph_number,
    "check_whether_response_sentence_number_in_range": _sentence_number,
    "check_whether_each_paragraph_sentence_number_in_range": _sentences_of_each_paragraph,
    "check_whether_each_paragraph_sentence_number_in_range_list": _sentences_by_paragraph,
    "check_whether_response_word_count_in_range": _word_count,
    "check_whether_each_paragraph_word_count_in_range": _words_of_each_paragraph,
    "check_whether_each_paragraph_word_count_in_range_list": _words_by_paragraph,
    "check_whether_whole_response_not_contain_certain_substrings": _contains_none,
    "check_whether_whole_response_not_contain_certain_substring": _contains_not,
    "check_whether_each_sentence_begin_with_certain_substring": _each_sentence_begins,
    "check_whether_each_sentence_end_with_certain_substring": _each_sentence_ends,
    "check_whether_each_paragraph_begin_with_certain_substring": _each_paragraph_begins,
    "check_whether_each_paragraph_end_with_certain_substring": _each_paragraph_ends,
    "check_whether_whole_response_begin_with_certain_substring": _begins,
    "check_whether_whole_response_end_with_certain_substring": _ends,
    "check_whether_each_keyword_in_list_metioned_in_range": _each_keyword,
    "check_whether_total_keyword_in_list_metioned_in_range": _all_keywords,
    "check_percentage_number_precision_in_response": _percentage_precision,
    "check_number_precision_in_response": _number_precision,
    "check_whether_has_no_arabic_number_in_response": _no_number,
}
"""The rules' names are the benchmark's own."""
