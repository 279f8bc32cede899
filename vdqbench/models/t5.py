"""The text encoder of Open-Sora v1.0: T5 v1.1, on captions of a fixed number of tokens, cleaned first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vdqbench.errors import ConfigError
from vdqbench.models.captions import clean


class CaptionEncoder(nn.Module):
    """T5's encoder and its tokenizer.

    Args:
        folder: as transformers saves them: config.json, weights, and tokenizer.json or spiece.model.
        length: tokens of a caption, the end-of-text token and padding included; longer captions are cut off.
        dtype: of the parameters; Open-Sora insists on float32.

    Raises:
        ConfigError: transformers or its tokenizer cannot read the folder.
    """

    def __init__(self, folder: Path, length: int, dtype: torch.dtype) -> None:
        super().__init__()
        try:
            from transformers import AutoTokenizer, T5EncoderModel

            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            network: Any = T5EncoderModel.from_pretrained(folder, local_files_only=True, dtype=dtype)
        except ImportError as error:
            raise ConfigError(
                f"the text encoder T5 needs a package that is not installed ({' '.join(str(error).split())[:120]}); "
                "pip install 'vdqbench[models]'"
            ) from error
        except (OSError, ValueError) as error:
            raise ConfigError(f"the text encoder T5 cannot be read from {folder} ({' '.join(str(error).split())[:160]})") from error
        self.network = network.eval().requires_grad_(False)
        self.length = length

    @property
    def width(self) -> int:
        """Channels of the embeddings."""
        return self.network.config.d_model

    @torch.no_grad()
    def forward(self, captions: Sequence[str]) -> list[tuple[Tensor, Tensor]]:
        """Embeddings float32 [1, length, width] and mask int64 [length] of each caption, on the CPU.

        Captions are encoded one by one: what a caption becomes does not depend on what stands beside it.
        """
        found, device = [], self.network.shared.weight.device
        for caption in captions:
            tokens = self.tokenizer(
                clean(caption),
                max_length=self.length,
                padding="max_length",
                truncation=True,
                return_attention_mask=True,
                return_tensors="pt",
            )
            ids, mask = tokens["input_ids"].to(device), tokens["attention_mask"]
            states = self.network(input_ids=ids, attention_mask=mask.to(device)).last_hidden_state
            found.append((states.float().cpu(), mask[0].long()))
        return found
