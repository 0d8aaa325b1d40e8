"""Checks that count sentences, words, letters, paragraphs and the digits of numbers."""

from __future__ import annotations

import re

from vero_jax.rewards.instructions.arguments import (
    Arguments,
    Check,
    Unusable,
    compares,
    in_range,
    paragraphs,
    sentences,
)
from vero_jax.rewards.language.sentences import split_sentences
from vero_jax.rewards.language.words import tokenize

_LOWER_CASE_RUN = re.compile(r"\b[a-z]+\b")
_ASCII_LETTER = re.compile(r"[A-Za-z]")
_NOT_IN_WORDS = re.compile(r"[^\w\s.-]")
_DIVIDER = re.compile(r"\s?\*\*\*\s?")
_DIGIT_RUN = re.compile(r"\d+")
_FREE_NUMBER = re.compile(r"(?<!\w)[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.(?P<decimals>\d+))?(?:[eE][+-]?\d+)?%?(?!\w)")


def number_of_sentences(text: str, arguments: Arguments) -> bool:
    return compares(len(split_sentences(text)), arguments.get("relation"), arguments.number("num_sentences"))


def number_of_words(text: str, arguments: Arguments) -> bool:
    """Punctuation marks count as words."""
    return compares(len(tokenize(text)), arguments.get("relation"), arguments.number("num_words"))


def letter_frequency(text: str, arguments: Arguments) -> bool:
    letter = arguments.text("letter").strip().lower()
    if not re.fullmatch("[a-z]", letter):
        raise Unusable(f"argument 'letter' is not one letter: {letter!r}")
    return compares(text.lower().count(letter), arguments.get("let_relation"), arguments.number("let_frequency"))


def capital_word_frequency(text: str, arguments: Arguments) -> bool:
    capitals = sum(token.isupper() for token in tokenize(text))
    return compares(capitals, arguments.get("capital_relation"), arguments.number("capital_frequency"))


def lower_case_words(text: str, arguments: Arguments) -> bool:
    return len(_LOWER_CASE_RUN.findall(text)) <= arguments.number("N", positive=True)


def letters(text: str, arguments: Arguments) -> bool:
    return compares(len(_ASCII_LETTER.findall(text)), arguments.get("relation"), arguments.number("N", positive=True))


def composition(text: str, arguments: Arguments) -> bool:
    """Three pieces, each of n_sent sentences, each sentence of n_words tokens."""
    sentence_count = arguments.number("n_sent", positive=True)
    word_count = arguments.number("n_words", positive=True)
    pieces = _DIVIDER.split(text)
    if len(pieces) != 3:
        return False
    for piece in pieces:
        found = split_sentences(piece)
        if len(found) != sentence_count or any(len(tokenize(sentence)) != word_count for sentence in found):
            return False
    return True


def unique_words(text: str, arguments: Arguments) -> bool:
    tokens = tokenize(text)
    return len(set(tokens)) == len(tokens)


def paragraph_number_in_range(text: str, arguments: Arguments) -> bool:
    return in_range(len(paragraphs(text)), arguments)


def sentence_number_in_range(text: str, arguments: Arguments) -> bool:
    return in_range(len(sentences(text)), arguments)


def sentence_number_in_range_each(text: str, arguments: Arguments) -> bool:
    return all(in_range(len(split_sentences(paragraph)), arguments) for paragraph in paragraphs(text))


def sentence_number_in_range_list(text: str, arguments: Arguments) -> bool:
    """The i-th paragraph's number of sentences lies in the i-th range."""
    ranges = arguments.get("ranges")
    found = paragraphs(text)
    if len(found) != len(ranges):
        return False
    return all(
        low <= len(split_sentences(paragraph)) <= high for paragraph, (low, high) in zip(found, ranges, strict=True)
    )


def word_count_in_range(text: str, arguments: Arguments) -> bool:
    return in_range(_space_words(text), arguments)


def word_count_in_range_each(text: str, arguments: Arguments) -> bool:
    return all(in_range(_space_words(paragraph), arguments) for paragraph in paragraphs(text))


def percentage_precision(text: str, arguments: Arguments) -> bool:
    """Every number before a percent sign has a decimal point and exactly `precision` decimals."""
    precision = arguments.get("precision")
    ends = {match.end(): match for match in _DIGIT_RUN.finditer(text)}
    for end, run in ends.items():
        if text[end : end + 1] != "%":
            continue
        point = run.start() - 1
        if point < 1 or text[point] != "." or point not in ends or len(run.group()) != precision:
            return False
    return True


def number_precision(text: str, arguments: Arguments) -> bool:
    """Every free-standing number has exactly `precision` decimals."""
    precision = arguments.get("precision")
    return all(len(match.group("decimals") or "") == precision for match in _FREE_NUMBER.finditer(text))


def no_digits(text: str, arguments: Arguments) -> bool:
    return not _DIGIT_RUN.search(text)


def _space_words(text: str) -> int:
    return len(_NOT_IN_WORDS.sub("", text).split())


CHECKS: dict[str, Check] = {
    "NumberOfSentences": number_of_sentences,
    "NumberOfWords": number_of_words,
    "LetterFrequencyChecker": letter_frequency,
    "CapitalWordFrequencyChecker": capital_word_frequency,
    "LowercaseCountingChecker": lower_case_words,
    "LetterCountingChecker": letters,
    "CountingCompositionChecker": composition,
    "CountUniqueChecker": unique_words,
    "CheckWhetherResponseParagraphNumberInRange": paragraph_number_in_range,
    "CheckWhetherResponseSentenceNumberInRange": sentence_number_in_range,
    "CheckWhetherEachParagraphSentenceNumberInRange": sentence_number_in_range_each,
    "CheckWhetherEachParagraphSentenceNumberInRangeList": sentence_number_in_range_list,
    "CheckWhetherResponseWordCountInRange": word_count_in_range,
    "CheckWhetherEachParagraphWordCountInRange": word_count_in_range_each,
    "CheckPercentageNumberPrecisionInResponse": percentage_precision,
    "CheckNumberPrecisionInResponse": number_precision,
    "CheckWhetherHasNoArabicNumberInResponse": no_digits,
}
