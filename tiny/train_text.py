"""Train the sentencepiece model and the umT5 encoder: every output row must tell all attributes.

Linear readers on each row (and on their mean) are trained along and thrown away. An encoder that
spreads the four attributes over all rows is easy for the experts' cross-attention, and it stays frozen.
"""

from __future__ import annotations

import argparse
import io
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import sentencepiece
import torch
from torch import Tensor, nn

from ..wan.config import NEGATIVE_PROMPT, TINY
from ..wan.text import Tokenizer, UMT5Encoder
from .captions import ATTRIBUTES, HELD_OUT_SCENES, LANGUAGES, Scene, caption, training_caption

WORK = Path(__file__).parent / "work"
BATCH = 128
PEAK = 2e-3


def train_tokenizer(seed: int = 0) -> bytes:
    """A unigram model of ``TINY.text.vocab_size`` pieces; letter case is folded."""
    rng = random.Random(seed)
    sentences = [training_caption(rng)[1] for _ in range(20000)] + [NEGATIVE_PROMPT] * 50
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="unigram",
        vocab_size=TINY.text.vocab_size,
        character_coverage=1.0,
        normalization_rule_name="nmt_nfkc_cf",
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
    )
    return model.getvalue()


def initialise(encoder: UMT5Encoder) -> None:
    """T5's scale: unit embeddings, attention without 1/sqrt(d) made up for in the query weights."""
    config = encoder.config
    head_dim = config.attn_dim // config.num_heads
    deviations = {
        "token_embedding": 1.0,
        "attn.q": (config.dim * head_dim) ** -0.5,
        "attn.o": config.attn_dim**-0.5,
        "pos_embedding.embedding": 0.1,
        "ffn.fc2": config.ffn_dim**-0.5,
    }
    for name, parameter in encoder.named_parameters():
        if parameter.ndim == 2:
            found = [std for part, std in deviations.items() if f"{part}.weight" in name]
            nn.init.normal_(parameter, std=found[0] if found else config.dim**-0.5)


def pad_ids(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Token lists to ids and mask, both (B, longest)."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return ids, mask


class Readers(nn.Module):
    """One linear reader per attribute."""

    def __init__(self, dim: int) -> None:
        """``dim`` is the width of the encoder."""
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(dim, len(names)) for names in ATTRIBUTES.values())

    def forward(self, hidden: Tensor, mask: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy over rows and their mean, and how often each attribute's mean is right (4,)."""
        weight = mask / mask.sum(dim=1, keepdim=True)
        mean = (hidden * weight[..., None]).sum(dim=1)
        loss, right = hidden.new_zeros(()), []
        for index, head in enumerate(self.heads):
            wanted = target[:, index]
            rows = nn.functional.cross_entropy(
                head(hidden).transpose(1, 2),
                wanted[:, None].expand(-1, hidden.shape[1]),
                reduction="none",
            )
            pooled = head(mean)
            loss = loss + (rows * weight).sum(dim=1).mean()
            loss = loss + nn.functional.cross_entropy(pooled, wanted)
            right.append((pooled.argmax(dim=1) == wanted).float().mean())
        return loss, torch.stack(right)


def _batches(tokenizer: Tokenizer, rng: random.Random) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    while True:
        drawn = [training_caption(rng) for _ in range(BATCH)]
        yield _tensors(tokenizer, drawn)


def _tensors(tokenizer: Tokenizer, drawn: list[tuple[Scene, str]]) -> tuple[Tensor, Tensor, Tensor]:
    ids, mask = pad_ids([tokenizer.encode(text) for _, text in drawn])
    return ids, mask, torch.tensor([scene.indices() for scene, _ in drawn])


def train(steps: int, out: Path, report: Callable[[str], None]) -> UMT5Encoder:
    """Train tokenizer and encoder and save both to ``out``."""
    torch.manual_seed(0)
    spiece = train_tokenizer()
    tokenizer = Tokenizer(spiece, TINY.text.text_len)
    encoder = UMT5Encoder(TINY.text)
    initialise(encoder)
    readers = Readers(TINY.text.dim)
    parameters = [*encoder.parameters(), *readers.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=PEAK, betas=(0.9, 0.98), weight_decay=0.01)
    batches = _batches(tokenizer, random.Random(0))
    for step in range(steps):
        ids, mask, target = next(batches)
        optimiser.param_groups[0]["lr"] = PEAK * min(1.0, (step + 1) / 20, 2 * (1 - step / steps))
        loss, right = readers(encoder(ids, mask), mask, target)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if (step + 1) % 25 == 0:
            report(f"text step {step + 1} loss {loss.item():.4f} right {right.tolist()}")
    rng = random.Random(1)
    drawn = [(s, caption(s, lang, rng)) for s in HELD_OUT_SCENES for lang in LANGUAGES]
    ids, mask, target = _tensors(tokenizer, drawn)
    with torch.no_grad():
        _, right = readers(encoder(ids, mask), mask, target)
    report(f"text, held-out scenes: {dict(zip(ATTRIBUTES, right.tolist(), strict=True))}")
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"encoder": encoder.state_dict(), "spiece": spiece}, out)
    return encoder


def main() -> int:
    """Train the tokenizer and the text encoder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=WORK / "text.pt")
    arguments = parser.parse_args()
    train(arguments.steps, arguments.out, lambda line: print(line, flush=True))
    return 0
