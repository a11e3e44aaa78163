"""The Wan diffusion transformer (text to video); attribute names equal the official checkpoint keys.

Without gradients a forward holds three hidden states: its own, the keys and the values. These two
are made for the whole sequence first; queries, output projection and feed-forward then go over the
tokens in parts and write into the hidden state. With gradients the same formulas make new tensors.

Time MLP and modulation are float32 as in the official code, and so are the statistics of norms and
the head. Matrix products, attention and the hidden state are in the dtype of the latents passed in.
Weights follow their input's dtype (see ``ops``), so storage may be smaller.

Shape legend: B batch, C channels, T/h/w latent frames/height/width, L tokens, S text rows,
D model dim, N heads.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import pad

from ..attention import Attention, log_counts, sdpa
from ..config import TransformerConfig
from ..layers import Ready, ready, timestep_features
from ..ops import Ops, TorchOps
from ..rope import rope_table
from ..shapes import TokenGrid, token_grid
from .blocks import SLOTS, Block, Branch, Head, Text, Tokens, chunk_tokens, direct, parts
from .memory import EXACT, Memory


class WanTransformer(nn.Module):
    """One expert: ``(noisy latents, timestep, text) -> velocity``.

    Source: official ``wan/modules/model.py`` (``WanModel``, text-to-video variant).

    Attributes:
        chunk: tokens worked on at a time where no gradient is wanted; None for :func:`chunk_tokens`.
        hidden: dtype of the hidden state; None for that of the latents. float32 beside bfloat16 is
            what the official code has, and one more hidden state of memory.
        memory: what a forward holds how where no gradient is wanted.
        through: what the branches of a block go through; see ``wan.compiled``.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        ops: Ops = TorchOps,
        attention: Attention = sdpa,
        make: Ready = ready,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the modules without meaningful weights; load an official state dict into them."""
        super().__init__()
        factory: dict[str, object] = {"device": device, "dtype": dtype}
        self.config = config
        self.dtype = dtype or torch.get_default_dtype()
        self.chunk: int | None = None
        self.hidden: torch.dtype | None = None
        self.memory: Memory = EXACT
        self.through: Callable[[Branch], Branch] = direct
        self._rope: tuple[tuple[TokenGrid, torch.device], Tensor] | None = None
        dim, patch = config.dim, config.patch_size
        self.patch_embedding = ops.Conv3d(
            config.in_dim, dim, kernel_size=patch, stride=patch, **factory
        )
        self.text_embedding = nn.Sequential(
            ops.Linear(config.text_dim, dim, **factory),
            nn.GELU(approximate="tanh"),
            ops.Linear(dim, dim, **factory),
        )
        self.time_embedding = nn.Sequential(
            ops.Linear(config.freq_dim, dim, **factory), nn.SiLU(), ops.Linear(dim, dim, **factory)
        )
        self.time_projection = nn.Sequential(nn.SiLU(), ops.Linear(dim, dim * SLOTS, **factory))
        self.blocks = nn.ModuleList(
            [Block(config, ops, attention, make, factory) for _ in range(config.num_layers)]
        )
        self.head = Head(config, ops, factory)

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor | Text) -> Tensor:
        """Predict the flow velocity ``noise - clean``.

        Args:
            x: ``(B, C, T, h, w)`` noisy normalised latents; h and w even. Its dtype is the dtype
                of the matrix products.
            timestep: ``(B,)`` real, ``1000 * sigma`` in [0, 1000].
            context: ``(B, S, text_dim)`` encoded text, S <= 512; missing rows count as zeros. Or
                what :meth:`read` made of it.

        Returns:
            ``(B, out_dim, T, h, w)`` float32.

        Raises:
            ValueError: wrong channel count, odd latent size or text of another width.
        """
        self._check(x)
        grid = token_grid(*x.shape[2:])
        hidden, time, tokens = self.embed(x, timestep, context, grid)
        for block in self.blocks:
            hidden = block(hidden, tokens)
        return self.unembed(hidden, time, grid)

    def read(self, context: Tensor, dtype: torch.dtype) -> Text:
        """Read a prompt once for many forwards; it goes stale when a weight or a LoRA changes.

        Rows after the text are zeros and alike. A few keys stand for all of them, which the
        attention backend weighs by a bias: only for backends that take one.

        Args:
            context: ``(B, S, text_dim)`` encoded text, S <= 512.
            dtype: of the latents that will be passed in.

        Raises:
            ValueError: text of another width or longer than 512 rows.
        """
        self._check_text(context)
        told = context.ne(0).any(-1).any(0).nonzero()
        length = int(told[-1]) + 1 if len(told) else 0
        biases = log_counts(self.config.text_len - length, dtype)
        rows = pad(context[:, :length].to(dtype), (0, 0, 0, len(biases)))
        bias = torch.tensor([0.0] * length + biases, dtype=dtype, device=context.device)
        return Text(self.text_embedding(rows), bias if biases else None, {})

    def embed(
        self, x: Tensor, timestep: Tensor, context: Tensor | Text, grid: TokenGrid
    ) -> tuple[Tensor, Tensor, Tokens]:
        """Everything before the blocks: hidden ``(B, L, D)``, time ``(B, D)`` float32, tokens."""
        time = self.time_embedding(timestep_features(timestep, self.config.freq_dim))
        slots = self.time_projection(time)  # before the hidden state: its weight is wide in float32
        hidden = self._patches(x, grid)
        text = context if isinstance(context, Text) else self._plain_text(context, x.dtype)
        tokens = Tokens(
            time=rearrange(slots, "b (six d) -> b six d", six=SLOTS),
            text=text,
            rope=self._table(grid, x.device),
            chunk=self.chunk or chunk_tokens(grid.tokens),
            memory=self.memory,
            through=self.through,
        )
        return hidden, time, tokens

    def unembed(self, hidden: Tensor, time: Tensor, grid: TokenGrid) -> Tensor:
        """Hidden ``(B, L, D)`` to velocity ``(B, C, T, h, w)``; channels are fastest in a patch."""
        places = parts(grid.tokens, self.chunk or chunk_tokens(grid.tokens))
        fetched = (self.memory.take(hidden, where, time.device) for where in places)
        values = torch.cat([self.head(part, time) for part in fetched], dim=1)
        p, q, r = self.config.patch_size
        return rearrange(
            values,
            "b (t h w) (p q r c) -> b c (t p) (h q) (w r)",
            t=grid.frames, h=grid.height, w=grid.width, p=p, q=q, r=r,
        )  # fmt: skip

    def _patches(self, x: Tensor, grid: TokenGrid) -> Tensor:
        """The hidden state ``(B, L, D)`` of latents, where :attr:`memory` has it."""
        dtype = self.hidden or x.dtype

        def embedded(frames: Tensor) -> Tensor:
            # Contiguous: every later pass over the tokens would otherwise stride across channels.
            rows: Tensor = rearrange(self.patch_embedding(frames), "b d t h w -> b (t h w) d")
            return rows.to(dtype).contiguous()

        if self.memory.hidden_on is None or torch.is_grad_enabled():
            return embedded(x)
        shape = (x.shape[0], grid.tokens, self.config.dim)
        hidden = self.memory.hold(shape, dtype, x.device)
        frames = torch.split(x, self.config.patch_size[0], dim=2)
        for where, part in zip(parts(grid.tokens, grid.height * grid.width), frames, strict=True):
            self.memory.put(embedded(part), hidden, where)
        return hidden

    def _plain_text(self, context: Tensor, dtype: torch.dtype) -> Text:
        """All rows, each as a key of its own: every attention backend can do this."""
        self._check_text(context)
        missing = self.config.text_len - context.shape[1]
        return Text(self.text_embedding(pad(context.to(dtype), (0, 0, 0, missing))))

    def _table(self, grid: TokenGrid, device: torch.device) -> Tensor:
        """The rotations of the last shape are kept: every forward of a run needs the same."""
        if self._rope is None or self._rope[0] != (grid, device):
            head_dim = self.config.dim // self.config.num_heads
            with torch.inference_mode(False):
                self._rope = (grid, device), rope_table(grid, head_dim, device)
        return self._rope[1]

    def _check(self, x: Tensor) -> None:
        if x.ndim != 5 or x.shape[1] != self.config.in_dim:
            raise ValueError(
                f"latents of shape {tuple(x.shape)} do not fit this expert; "
                f"it needs (batch, {self.config.in_dim}, frames, height / 8, width / 8)"
            )

    def _check_text(self, context: Tensor) -> None:
        if context.shape[-1] != self.config.text_dim:
            raise ValueError(
                f"text of width {context.shape[-1]} does not fit this expert, which was trained "
                f"on width {self.config.text_dim}; use the text encoder of the same family"
            )
        if context.shape[1] > self.config.text_len:
            raise ValueError(
                f"text of {context.shape[1]} rows is longer than {self.config.text_len}; "
                "shorten the prompt or encode it with Encode Wan Prompt"
            )
