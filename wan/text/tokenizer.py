"""Prompt cleaning and the sentencepiece tokenizer that travels inside the text encoder's file."""

from __future__ import annotations

import html
import logging
import re
from pathlib import Path

import ftfy
import sentencepiece

from ..config import TextConfig

log = logging.getLogger(__name__)

_TEXT_LEN = TextConfig().text_len
_WHITESPACE = re.compile(r"\s+")


def clean(text: str) -> str:
    """The official cleaning: repaired Unicode, HTML entities undone twice, single spaces, case kept."""
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return _WHITESPACE.sub(" ", text).strip()


def check_vocabulary(pieces: int, rows: int, name: str) -> None:
    """Raise ValueError if a tokenizer of ``pieces`` pieces outgrows an embedding of ``rows`` rows."""
    if pieces > rows:
        raise ValueError(
            f"the tokenizer of {name} knows {pieces} pieces, its encoder {rows}; "
            "use the spiece.model of the same family"
        )


class Tokenizer:
    """Sentencepiece ids of a cleaned prompt, closed by the end token."""

    def __init__(self, model: bytes, text_len: int = _TEXT_LEN) -> None:
        """Read a serialized sentencepiece model.

        Raises:
            ValueError: if ``model`` is not one, or has no end token.
        """
        if text_len < 1:
            raise ValueError(f"text_len={text_len} leaves no room for the end token; use 1 or more")
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise ValueError(
                f"{len(model)} bytes are not a sentencepiece model; use the `spiece.model` of umT5"
            ) from error
        self._end = self._processor.eos_id()
        if self._end < 0:
            raise ValueError(
                "the sentencepiece model has no end token, umT5 needs one; use the `spiece.model` of umT5"
            )
        self.text_len = text_len

    @classmethod
    def from_file(cls, path: str | Path, text_len: int = _TEXT_LEN) -> Tokenizer:
        """Read a ``spiece.model`` file; raises OSError if it cannot be read."""
        return cls(Path(path).read_bytes(), text_len)

    @property
    def vocab_size(self) -> int:
        """Number of pieces the model knows; the encoder's embedding has at least as many rows."""
        return int(self._processor.vocab_size())

    def encode(self, text: str) -> list[int]:
        """Ids of the cleaned ``text``: at most ``text_len - 1`` pieces, then the end token.

        A longer text is cut, as the official pipeline does, and the log says so.
        """
        pieces: list[int] = self._processor.EncodeAsIds(clean(text))
        if len(pieces) >= self.text_len:
            log.warning("a text of %d tokens was cut to %d", len(pieces) + 1, self.text_len)
        return [*pieces[: self.text_len - 1], self._end]
