"""The text encoder of the minis: whole words, a table of embeddings and one transformer layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WordEncoder(nn.Module):
    """Text embeddings of captions over a closed vocabulary.

    Args:
        vocabulary: the words that may occur; index 0 is padding and not among them.
        width: channels of the embeddings.
        length: tokens of a caption, padding included.
    """

    def __init__(self, vocabulary: list[str], width: int = 96, length: int = 12) -> None:
        super().__init__()
        self.index = {word: i + 1 for i, word in enumerate(vocabulary)}
        self.length = length
        self.words = nn.Embedding(len(vocabulary) + 1, width)
        self.positions = nn.Parameter(torch.randn(length, width) * 0.02)
        self.layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)

    def tokenize(self, captions: list[str]) -> Tensor:
        """Word indices [N, length], 0 where a caption has ended.

        Raises:
            ValueError: a word outside the vocabulary, or a caption that is too long.
        """
        tokens = torch.zeros(len(captions), self.length, dtype=torch.long)
        for row, caption in zip(tokens, captions, strict=True):
            words = caption.lower().split()
            if unknown := sorted(set(words) - set(self.index)):
                known = " ".join(sorted(self.index))
                raise ValueError(f"prompt {caption!r} has words this mini was not taught: {', '.join(unknown)} (it knows: {known})")
            if len(words) > self.length:
                raise ValueError(f"prompt {caption!r} has {len(words)} words; this mini reads at most {self.length}")
            row[: len(words)] = torch.tensor([self.index[word] for word in words])
        return tokens

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [N, L] to embeddings [N, 1, L, width] and mask [N, L] (1 for words, 0 for padding)."""
        padding = tokens == 0
        tokens = tokens.to(self.positions.device)
        y = self.layer(self.words(tokens) + self.positions, src_key_padding_mask=padding.to(tokens.device))
        return y[:, None], (~padding).long().to(tokens.device)
