"""Byte pair encoding (Sennrich et al. 2016): text as numbers of common pieces, learnt from text."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

ALPHABET = ["\n", *map(chr, range(32, 127))]
PIECE = re.compile(r" ?[A-Za-z]+| ?[0-9]+|\s+| ?[^\sA-Za-z0-9]+")  # merges stay within a word and its leading blank
Pair = tuple[str, str]


class Vocabulary:
    """`merges` in the order in which they were learnt are all there is to know. Characters beyond ASCII are dropped."""

    def __init__(self, merges: Iterable[Iterable[str]]) -> None:
        self.merges: list[Pair] = [(first, second) for first, second in merges]
        self.symbols = [*ALPHABET, *(first + second for first, second in self.merges)]
        self._rank = {pair: rank for rank, pair in enumerate(self.merges)}
        self._number = {symbol: number for number, symbol in enumerate(self.symbols)}
        self._known: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        numbers: list[int] = []
        for word in PIECE.findall(plain(text)):
            if word not in self._known:
                self._known[word] = [self._number[symbol] for symbol in self._spell(word)]
            numbers += self._known[word]
        return numbers

    def lengths(self) -> list[int]:
        """Characters per symbol."""
        return [len(symbol) for symbol in self.symbols]

    def _spell(self, word: str) -> list[str]:
        symbols = list(word)
        while len(symbols) > 1:
            best = min(pairwise(symbols), key=lambda pair: self._rank.get(pair, len(self._rank)))
            if best not in self._rank:
                break
            symbols = merged(symbols, best)
        return symbols


def learn(text: str, size: int) -> Vocabulary:
    """The commonest pair of neighbours becomes a symbol, again and again, until there are `size` of them."""
    words = Counter(PIECE.findall(plain(text)))
    spelled = {word: list(word) for word in words}
    counts: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[str]] = defaultdict(set)

    def count(word: str, sign: int) -> None:
        for pair in pairwise(spelled[word]):
            counts[pair] += sign * words[word]
            where[pair].add(word)

    for word in words:
        count(word, 1)
    merges: list[Pair] = []
    while len(ALPHABET) + len(merges) < size:
        best = max(counts, key=lambda pair: (counts[pair], pair))
        merges.append(best)
        for word in where.pop(best):
            count(word, -1)
            spelled[word] = merged(spelled[word], best)
            count(word, 1)
        del counts[best]
    return Vocabulary(merges)


def merged(symbols: list[str], pair: Pair) -> list[str]:
    out: list[str] = []
    for symbol in symbols:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return out


def plain(text: str) -> str:
    return "".join(character for character in text if character == "\n" or " " <= character <= "~")
