"""Checks that look for given words, phrases and substrings."""

from __future__ import annotations

import re

from vero_jax.rewards.instructions.arguments import (
    Arguments,
    Check,
    Unusable,
    compares,
    in_range,
    occurrences,
    paragraphs,
    sentences,
)
from vero_jax.rewards.language.sentences import split_sentences
from vero_jax.rewards.language.words import tokenize


def all_keywords(text: str, arguments: Arguments) -> bool:
    keywords = arguments.texts("keywords")
    if not keywords:
        raise Unusable("argument 'keywords' is empty")
    return all(re.search(keyword.strip(), text, re.IGNORECASE) for keyword in keywords)


def keyword_frequency(text: str, arguments: Arguments) -> bool:
    keyword = arguments.text("keyword", empty=False).strip()
    return compares(occurrences(keyword, text), arguments.get("relation"), arguments.number("frequency"))


def keyword_once(text: str, arguments: Arguments) -> bool:
    return occurrences(arguments.text("keyword", empty=False).strip(), text) == 1


def keyword_once_and_twice(text: str, arguments: Arguments) -> bool:
    once, twice = (arguments.text(name, empty=False).strip() for name in ("keyword1", "keyword2"))
    return occurrences(once, text) == 1 and occurrences(twice, text) == 2


def forbidden_words(text: str, arguments: Arguments) -> bool:
    words = arguments.texts("forbidden_words")
    if not words:
        raise Unusable("argument 'forbidden_words' is empty")
    return not any(re.search(rf"\b{word}\b", text, re.IGNORECASE) for word in words)


def excluded_word(text: str, arguments: Arguments) -> bool:
    keyword = re.escape(arguments.text("keyword", empty=False))
    return not re.search(rf"\b{keyword}\b", text, re.IGNORECASE)


def keyword_at_position(text: str, arguments: Arguments) -> bool:
    """The m-th token of the n-th sentence is the keyword."""
    keyword = arguments.text_or_first("keyword").strip()
    sentence_number, word_number = int(arguments.bound("n")), int(arguments.bound("m"))
    found = split_sentences(text)
    if len(found) < sentence_number:
        return False
    tokens = tokenize(found[sentence_number - 1])
    return len(tokens) >= word_number and tokens[word_number - 1] == keyword


def key_sentences(text: str, arguments: Arguments) -> bool:
    wanted = arguments.texts("key_sentences")
    if not wanted:
        raise Unusable("argument 'key_sentences' is empty")
    # The data leaves the count out where it can only be one.
    count = arguments.number("num_sentences", positive=True) if "num_sentences" in arguments or len(wanted) > 1 else 1
    found = split_sentences(text)
    return sum(sentence in found for sentence in wanted) == count


def no_substrings(text: str, arguments: Arguments) -> bool:
    wanted = arguments.texts("substrings") if "substrings" in arguments else []
    return not any(substring in text for substring in wanted)


def no_substring(text: str, arguments: Arguments) -> bool:
    return arguments.text("substring") not in text


def each_sentence_begins(text: str, arguments: Arguments) -> bool:
    return all(sentence.startswith(arguments.text("substring")) for sentence in sentences(text))


def each_sentence_ends(text: str, arguments: Arguments) -> bool:
    return all(sentence.endswith(arguments.text("substring")) for sentence in sentences(text))


def each_paragraph_begins(text: str, arguments: Arguments) -> bool:
    return all(paragraph.startswith(arguments.text("substring")) for paragraph in paragraphs(text))


def each_paragraph_ends(text: str, arguments: Arguments) -> bool:
    return all(paragraph.endswith(arguments.text("substring")) for paragraph in paragraphs(text))


def begins(text: str, arguments: Arguments) -> bool:
    return text.strip().startswith(arguments.text("substring"))


def ends(text: str, arguments: Arguments) -> bool:
    return text.strip().endswith(arguments.text("substring"))


def each_keyword_in_range(text: str, arguments: Arguments) -> bool:
    return all(_in_times(count, arguments) for count in _keyword_counts(text, arguments))


def total_keywords_in_range(text: str, arguments: Arguments) -> bool:
    return _in_times(sum(_keyword_counts(text, arguments)), arguments)


def _keyword_counts(text: str, arguments: Arguments) -> list[int]:
    lower = text.lower()
    return [len(re.findall(rf"\b{re.escape(keyword.lower())}\b", lower)) for keyword in arguments.texts("keywords")]


def _in_times(count: int, arguments: Arguments) -> bool:
    return in_range(count, arguments, "lower_bound_times", "upper_bound_times")


CHECKS: dict[str, Check] = {
    "KeywordChecker": all_keywords,
    "KeywordFrequencyChecker": keyword_frequency,
    "KeywordFrequencyCheckerDifferent": keyword_frequency,
    "KeywordFrequencyOnceChecker": keyword_once,
    "CountIncrementWordChecker": keyword_once_and_twice,
    "ForbiddenWords": forbidden_words,
    "ExcludeWordHarderChecker": excluded_word,
    "KeywordSpecificPositionChecker": keyword_at_position,
    "KeySentenceChecker": key_sentences,
    "CheckWhetherWholeResponseNotContainCertainSubstrings": no_substrings,
    "CheckWhetherWholeResponseNotContainCertainSubstring": no_substring,
    "CheckWhetherEachSentenceBeginWithCertainSubstring": each_sentence_begins,
    "CheckWhetherEachSentenceEndWithCertainSubstring": each_sentence_ends,
    "CheckWhetherEachParagraphBeginWithCertainSubstring": each_paragraph_begins,
    "CheckWhetherEachParagraphEndWithCertainSubstring": each_paragraph_ends,
    "CheckWhetherWholeResponseBeginWithCertainSubstring": begins,
    "CheckWhetherWholeResponseEndWithCertainSubstring": ends,
    "CheckWhetherEachKeywordInListMetionedInRange": each_keyword_in_range,
    "CheckWhetherTotalKeywordInListMetionedInRange": total_keywords_in_range,
}
