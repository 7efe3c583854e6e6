"""CLIP's tokenizer without `open_clip`: `prior.bpe`. Each test compares with OpenCLIP's own, or damages the file."""

import gzip
import importlib.util
import json
import pickle
import shutil
from importlib.machinery import ModuleSpec
from pathlib import Path

import ftfy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer

from prior import bpe
from prior.bpe import Tokenizer
from steering.catalogue import DEFAULT_MODEL, MODELS

OPEN_CLIP = SimpleTokenizer()
TEXTS = (
    "a dog", "A Golden Retriever, sitting.", "  two \t spaces \n and a break ", "it's we're I'LL don't they'd", "",
    "naïve café, Ünter der Straße", "e\u0301 is decomposed", "schÃ¶n was read as Latin-1", "ﬁne ﬂags",
    "“quotes” – and …",
    "🐶 a dog 🐈‍⬛", "!!! ??? a_b-c (d) #e @f", "&amp;lt; &eacute; <b>bold</b>", "½ ² Ⅷ 42 1,000",
    "日本語 नमस्ते العربية",
    "<start_of_text> a dog <END_OF_TEXT>", "\x1b[31mred\x1b[0m", "a\u00a0b\u200bc", "İstanbul ǅ ſ", "z" * 200,
)  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_open_clips(text: str) -> None:
    assert Tokenizer().encode(text) == OPEN_CLIP.encode(text)


@given(st.text(max_size=30) | st.text(st.sampled_from("abcdehinorst '&;.-,19éü"), max_size=40))
def test_tokens_of_any_text_are_open_clips(text: str) -> None:
    assert Tokenizer().encode(text) == OPEN_CLIP.encode(text)


def test_tokens_of_every_known_word_are_open_clips() -> None:
    words = json.loads((MODELS / DEFAULT_MODEL / "vocabulary.json").read_text())["nouns"]
    assert len(words) > 2000
    assert [Tokenizer().encode(word) for word in words] == [OPEN_CLIP.encode(word) for word in words]


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="&"), max_size=40))
def test_nothing_is_mended_in_plain_letters(text: str) -> None:
    assert ftfy.fix_text(text) == text


def test_start_and_end_are_open_clips() -> None:
    own = Tokenizer()
    assert (own.sot_token_id, own.eot_token_id) == (OPEN_CLIP.sot_token_id, OPEN_CLIP.eot_token_id)


def test_a_copy_in_another_process_carries_no_tables() -> None:
    data = pickle.dumps(Tokenizer())
    assert len(data) < 500
    assert pickle.loads(data).encode("a dog") == OPEN_CLIP.encode("a dog")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of merges of a copy of the package, which is found instead of the real one."""
    found = importlib.util.find_spec(bpe.PACKAGE)
    assert found is not None
    assert found.submodule_search_locations
    file = Path(shutil.copy(Path(found.submodule_search_locations[0]) / bpe.MERGES, tmp_path))
    copy = ModuleSpec(bpe.PACKAGE, None, is_package=True)
    copy.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: copy)
    bpe._tables.cache_clear()
    yield file
    bpe._tables.cache_clear()


def test_without_the_package_the_error_says_what_to_install(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Tokenizer().eot_token_id == 49407
    bpe._tables.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="are not installed: pip install open_clip_torch"):
        Tokenizer()


def test_a_damaged_file_of_merges_is_refused(package: Path) -> None:
    whole = package.read_bytes()
    package.write_bytes(whole[: len(whole) // 10])
    with pytest.raises(ValueError, match=r"tokenizer: .* cannot be read .*: install open_clip_torch again"):
        Tokenizer()
    package.write_bytes(gzip.compress(gzip.decompress(whole)[:5000]))
    with pytest.raises(ValueError, match=r"tokenizer: .* merges, expected 48894: install open_clip_torch again"):
        Tokenizer()
    package.unlink()
    with pytest.raises(ValueError, match=r"tokenizer: .* cannot be read"):
        Tokenizer()
