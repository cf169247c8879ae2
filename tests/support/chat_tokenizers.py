"""Tokenizers and chat templates of several kinds, small enough to follow by hand."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_STRIPS = CHATML.replace("m.content", "m.content | trim")
CHATML_NO_PROMPT = CHATML.partition("{% if")[0]
CHATML_REWRITES = CHATML.replace("m.content", "m.content | replace('secret', '')")
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}"
    "{% elif m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)

wrapped: type[Any] = PreTrainedTokenizerFast  # its constructor has no types


def byte_level(template: str | None, *, adds_bos: bool = False, **special: str) -> PreTrainedTokenizerFast:
    """A tokenizer with a token for each byte; ids 0 to 3 are special: <|end|> <|im_start|> <|im_end|> <s>."""
    specials = ["<|end|>", "<|im_start|>", "<|im_end|>", "<s>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(specials + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
    tokenizer.add_special_tokens(specials)
    fast: PreTrainedTokenizerFast = wrapped(tokenizer_object=tokenizer, **special)
    fast.chat_template = template
    return fast


def sentencepiece_like(template: str) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words with a leading ▁, which is also added before each text, as in Llama 2."""
    words = ["<unk>", "<s>", "</s>", "▁[INST]", "▁[/INST]", "▁hi", "▁hello", "▁there", "▁", "▁▁"]
    tokenizer = Tokenizer(models.WordLevel(vocab={word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    fast: PreTrainedTokenizerFast = wrapped(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.chat_template = template
    return fast
