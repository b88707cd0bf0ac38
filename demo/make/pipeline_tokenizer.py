"""Byte-pair encoding as CLIP's tokenizer reads it, learnt from a few hundred captions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

__all__ = ["END", "START", "learn_bpe"]

START, END = "<|startoftext|>", "<|endoftext|>"
_END_OF_WORD = "</w>"
_WORD = re.compile(r"[a-z]+|[^\sa-z]+")


def learn_bpe(captions: Iterable[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Merge the most frequent pair of neighbours until every word is one token.

    Args:
        captions: lower-case ASCII texts without digits, which CLIP would split one by one.

    Returns:
        The vocabulary, token -> id, in CLIP's order: 256 bytes, the same at the end of a word, what
        the merges make, start and end of the text; and the merges, in order.
    """
    counts = Counter(word for caption in captions for word in _WORD.findall(caption))
    words = {word: [*word[:-1], word[-1] + _END_OF_WORD] for word in counts}
    merges: list[tuple[str, str]] = []
    while any(len(parts) > 1 for parts in words.values()):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in words.items():
            for pair in pairwise(parts):
                pairs[pair] += counts[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, parts in words.items():
            words[word] = _merged(parts, best)
    alphabet = _byte_alphabet()
    tokens = [*alphabet, *(character + _END_OF_WORD for character in alphabet)]
    tokens += ["".join(pair) for pair in merges] + [START, END]
    # Two merges can make the same token; it has one id.
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}, merges


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for part in parts:
        if merged and (merged[-1], part) == pair:
            merged[-1] += part
        else:
            merged.append(part)
    return merged


def _byte_alphabet() -> list[str]:
    """One printable character per byte, the choice of GPT-2 and CLIP, in their order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
