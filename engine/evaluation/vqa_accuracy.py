"""The VQA challenge's soft accuracy and its normalisation of answers, in the form that TextVQA uses."""

import re
from collections.abc import Sequence

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {word: str(number) for number, word in enumerate(NUMBERS)} | {"none": "0"}
ARTICLES = {"a", "an", "the"}
CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
    would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
RESTORED = {
    word[:place] + word[place + 1 :]: word
    for word in CONTRACTIONS.split()
    for place, char in enumerate(word)
    if char == "'"
}
"""A contraction with one apostrophe left out -> the contraction."""
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r"(?<=\d),+(?=\d)")
PERIOD_NOT_IN_NUMBER = re.compile(r"\.(?!\d)")
NEEDED = 3
"""Other people who must have given an answer for it to be wholly right."""


def normalise(answer: str) -> str:
    """What the official evaluation compares."""
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _restore_words(_drop_punctuation(text.replace("\n", " ").replace("\t", " ").strip()))


def soft_accuracy(answer: str, references: Sequence[str]) -> float:
    """min(1, matches / 3) averaged over leaving out each person once, as the challenge does."""
    given = normalise(answer)
    matches = [normalise(reference) == given for reference in references]
    total = sum(matches)
    return sum(min(1.0, (total - match) / NEEDED) for match in matches) / len(matches)


def _drop_punctuation(text: str) -> str:
    """A mark beside a space is left out; one between words becomes a space."""
    result = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text or COMMA_IN_NUMBER.search(text)
        result = result.replace(mark, "" if beside_space else " ")
    return PERIOD_NOT_IN_NUMBER.sub("", result)


def _restore_words(text: str) -> str:
    words = [DIGITS.get(word, word) for word in text.lower().split()]
    return " ".join(RESTORED.get(word, word) for word in words if word not in ARTICLES)
