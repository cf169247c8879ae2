from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

from spin_components.data.text_encoder import ESCAPE, TextEncoder
from support.chat_tokenizers import CHATML, byte_level, sentencepiece_like, wrapped

SPECIALS = ["<|end|>", "<|im_start|>", "<|im_end|>", "<s>"]
HEADER = "<|im_start|>assistant\n"


class Counted:
    """A tokenizer that counts the characters it encodes."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self.num_characters = tokenizer, 0

    def __call__(self, texts: Any, **options: Any) -> Any:
        self.num_characters += sum(map(len, texts)) if isinstance(texts, list) else len(texts)
        return self._tokenizer(texts, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def pairs(number: int) -> list[tuple[str, str]]:
    return [(f"<|im_start|>user\nquestion {i}<|im_end|>\n{HEADER}", f" answer {i}") for i in range(number)]


def test_a_prompt_is_encoded_once_where_the_end_of_it_is_known() -> None:
    tokenizer = byte_level(CHATML)
    counted: Any = Counted(tokenizer)
    encoder = TextEncoder(counted, SPECIALS)
    for prompts_too in (True, False):
        counted.num_characters = 0
        encoded = encoder.encode_pairs(pairs(5))
        assert encoded == [(ids(tokenizer, prompt), ids(tokenizer, answer)) for prompt, answer in pairs(5)]
        joined = sum(len(prompt) + len(answer) for prompt, answer in pairs(5))
        assert counted.num_characters == joined + prompts_too * sum(len(prompt) for prompt, _ in pairs(5))


def rstripping() -> Any:
    """A tokenizer of characters, whose token <a> takes the white space after it, and <b> that before it."""
    tokenizer = Tokenizer(models.WordLevel({each: i for i, each in enumerate("?<ab> x\n")}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens([AddedToken("<a>", rstrip=True), AddedToken("<b>", lstrip=True)])
    return wrapped(tokenizer_object=tokenizer, unk_token="?")


def prepending() -> Any:
    """A tokenizer that sets a space before the first word of a text alone, as Llama 2's later files do."""
    tokenizer = Tokenizer(models.WordLevel({each: i for i, each in enumerate("?▁ab<>")}, unk_token="?"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Split("", "isolated")]
    )
    tokenizer.add_special_tokens(["<a>", "<b>"])
    return wrapped(tokenizer_object=tokenizer, unk_token="?")


@pytest.mark.parametrize("tokenizer", [rstripping(), prepending()], ids=["strips", "prepends"])
@pytest.mark.parametrize("prompt", ["a<a>", "b<a> ", "a<b>", "x <b> a", "<a>a", "a<a>\n", "a <b>"])
@pytest.mark.parametrize("answer", ["b", " b", "<b>", " <b>", "\n<a>"])
def test_what_is_learned_holds_for_tokens_that_take_white_space_along(tokenizer: Any, prompt: str, answer: str) -> None:
    texts = [(f"{start}{prompt}", answer) for start in ("", "x", "b<a>", "<a> a")]
    encoder = TextEncoder(tokenizer, ["<a>", "<b>"])
    first = encoder.encode_pairs([(f"bb{prompt}", "a")])  # learns the end of the prompt
    assert first[0][0] == ids(tokenizer, f"bb{prompt}")
    apart = [TextEncoder(tokenizer, ["<a>", "<b>"]).encode_pairs([text])[0] for text in texts]
    assert encoder.encode_pairs(texts) == apart
    assert [encoded for encoded, _ in apart] == [ids(tokenizer, text) for text, _ in texts]


def test_texts_without_special_tokens_are_encoded_apart() -> None:
    tokenizer = sentencepiece_like("")
    encoder = TextEncoder(tokenizer, ["<s>", "</s>"])
    for _ in range(2):
        assert encoder.encode_pairs([("hi", " there"), ("", "hi"), ("hi", "")]) == [([5], [7]), ([], [5]), ([5], [])]


def test_escaped_tokens_are_plain_text_between_others() -> None:
    tokenizer = byte_level(CHATML)
    encoder = TextEncoder(tokenizer, [*SPECIALS, ESCAPE])
    encoder.encode_pairs(pairs(1))
    said = encoder.escape("a <s> b")
    ((prompt, answer),) = encoder.encode_pairs([(f"<|im_start|>user\n{said}<|im_end|>\n{HEADER}", said)])
    assert (prompt.count(3), answer.count(3)) == (0, 0)
    assert tokenizer.decode(answer) == "a <s> b"
    assert tokenizer.decode(prompt) == f"<|im_start|>user\na <s> b<|im_end|>\n{HEADER}"
