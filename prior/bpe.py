"""CLIP's tokenizer: a text as numbers of byte pairs (Radford et al. 2021; Sennrich, Haddow & Birch 2016).

The merges are the file that the package `open_clip` carries. Unusual: that package is not imported, since its import
takes seconds; the file alone is read. The tokens are those of `open_clip.tokenizer.SimpleTokenizer`.
"""

from __future__ import annotations

import gzip
import html
import importlib.util
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import regex  # type: ignore[import-untyped]

PACKAGE, MERGES = "open_clip", "bpe_simple_vocab_16e6.txt.gz"
NUM_MERGES = 48_894  # 49,408 tokens without 256 bytes, 256 bytes that end a word, and two marks
READ = 1 << 20  # bytes of the file; the merges that count take half of that
END = "</w>"  # stands behind the last byte of a word
MARKS = ("<start_of_text>", "<end_of_text>")
_WORD = regex.compile(
    "|".join((*MARKS, "'s|'t|'re|'ve|'m|'ll|'d", r"[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")), regex.IGNORECASE
)


class Tokenizer:
    """CLIP's tokenizer. It holds no tables of its own: all share those of the process.

    Raises:
        ValueError: the package that carries the merges is not installed, or its file is damaged.
    """

    def __init__(self) -> None:
        self.sot_token_id, self.eot_token_id = (_tables()[1][mark] for mark in MARKS)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text in lower case, without those of start and end."""
        return [token for word in _WORD.findall(_clean(text)) for token in _tokens(word)]


def _clean(text: str) -> str:
    """A text in lower case with single spaces. Damaged letters are mended, and HTML's names of letters are read."""
    if not (text.isascii() and text.isprintable()) or "&" in text:  # all other texts are whole
        import ftfy

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


@lru_cache(1 << 16)
def _tokens(word: str) -> tuple[int, ...]:
    """The tokens of one word."""
    ranks, numbers = _tables()
    if word in MARKS:
        return (numbers[word],)
    letters = _letters()
    parts = [letters[byte] for byte in word.encode()]
    parts[-1] += END
    while len(parts) > 1:
        pair = min(pairwise(parts), key=lambda pair: ranks.get(" ".join(pair), NUM_MERGES))
        if " ".join(pair) not in ranks:
            break
        merged, index = [], 0
        while index < len(parts):
            here = tuple(parts[index : index + 2]) == pair
            merged.append("".join(pair) if here else parts[index])
            index += 2 if here else 1
        parts = merged
    return tuple(numbers[part] for part in parts)


@lru_cache(1)
def _letters() -> list[str]:
    """A letter for each byte: itself where it can be seen, else one from U+0100 on."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return [chr(byte) if byte in seen else chr(256 + hidden.index(byte)) for byte in range(256)]


@lru_cache(1)
def _tables() -> tuple[dict[str, int], dict[str, int]]:
    """The rank of each merge, the two parts of which stand with a space between them, and the number of each token.

    Raises:
        ValueError: as `Tokenizer`.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ValueError("tokenizer: the merges of CLIP's tokenizer are not installed: pip install open_clip_torch")
    path = Path(found.submodule_search_locations[0]) / MERGES
    try:
        with gzip.open(path) as file:
            lines = file.read(READ).decode(errors="ignore").split("\n", NUM_MERGES + 1)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"tokenizer: {MERGES} cannot be read ({error}): install open_clip_torch again") from None
    merges = lines[1 : NUM_MERGES + 1]
    if len(lines) < NUM_MERGES + 2:
        raise ValueError(
            f"tokenizer: {MERGES} has {len(merges)} merges, expected {NUM_MERGES}: install open_clip_torch again"
        )
    letters = _letters()
    in_order = sorted(letters, key=lambda letter: (ord(letter) > 255, letter))  # as CLIP numbers them
    merged = "\n".join(merges).replace(" ", "").split("\n")
    tokens = [*in_order, *(letter + END for letter in in_order), *merged, *MARKS]
    return dict(zip(merges, range(NUM_MERGES), strict=True)), dict(zip(tokens, range(len(tokens)), strict=True))
