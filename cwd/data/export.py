"""A tokenizer in the form that transformers loads by itself: tokenizer.json and tokenizer_config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cwd.data.tokenizers import BYTES, ByteTokenizer, HuggingFaceTokenizer, JsonTokenizer, Tokenizer


def as_hugging_face(tokenizer: Tokenizer) -> Any:
    """The same ids from a ``transformers.PreTrainedTokenizerBase``.

    No special token is added to it: to a text it gives the ids that the model was trained on, and no others.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer.backend
    from transformers import PreTrainedTokenizerFast

    assert isinstance(tokenizer, ByteTokenizer | JsonTokenizer)
    backend = tokenizer.backend if isinstance(tokenizer, JsonTokenizer) else _byte_backend()
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)


def save_for_transformers(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the tokenizer into a model's folder, where ``AutoTokenizer.from_pretrained(folder)`` finds it."""
    as_hugging_face(tokenizer).save_pretrained(str(folder))


def _byte_backend() -> Any:
    """UTF-8 bytes as a BPE without merges: a character that has no id of its own falls back to its bytes, and none
    has one.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models

    backend = Backend(models.BPE({f"<0x{byte:02X}>": byte for byte in range(BYTES)}, [], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return backend
