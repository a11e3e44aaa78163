"""The Wan diffusion transformer (text to video); attribute names equal the official checkpoint keys.

Float32 islands as in the official code: time MLP, modulation, norm statistics, gated adds and the
head. The residual stream is float32; matrix products and attention run in the dtype of the latents
passed in. Weights follow their input's dtype (see ``ops``), so storage may be smaller.

Shape legend: B batch, C channels, T/h/w latent frames/height/width, L tokens, S text rows,
D model dim, N heads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from .attention import Attention, sdpa
from .config import TransformerConfig
from .layers import Modulation, layer_norm, modulate, timestep_features
from .ops import Ops, TorchOps, current
from .rope import apply_rope, rope_table
from .shapes import TokenGrid, token_grid

SLOTS = 6


class Tokens(NamedTuple):
    """What every block sees besides the hidden state."""

    time: Tensor
    """``(B, 6, D)`` float32, shared by all blocks before their own modulation is added."""
    context: Tensor
    """``(B, S, D)`` embedded text rows."""
    rope: Tensor
    """``(2, L, head_dim // 2)`` float32."""


class SelfAttention(nn.Module):
    """Attention over all tokens with full-width RMS-normed, rotated queries and keys."""

    def __init__(
        self, config: TransformerConfig, ops: Ops, attention: Attention, factory: dict[str, object]
    ) -> None:
        """Four biased projections of width ``dim`` and two RMS norms over the full ``dim``."""
        super().__init__()
        self.num_heads = config.num_heads
        self.attention = attention
        self.q = ops.Linear(config.dim, config.dim, **factory)
        self.k = ops.Linear(config.dim, config.dim, **factory)
        self.v = ops.Linear(config.dim, config.dim, **factory)
        self.o = ops.Linear(config.dim, config.dim, **factory)
        self.norm_q = ops.RMSNorm(config.dim, eps=config.eps, **factory)
        self.norm_k = ops.RMSNorm(config.dim, eps=config.eps, **factory)

    def heads(self, x: Tensor) -> Tensor:
        """``(B, L, D)`` to ``(B, L, N, D / N)``."""
        return rearrange(x, "b l (n d) -> b l n d", n=self.num_heads)

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        """``(B, L, D)`` to ``(B, L, D)``."""
        q = apply_rope(self.heads(self.norm_q(self.q(x))), rope)
        k = apply_rope(self.heads(self.norm_k(self.k(x))), rope)
        out: Tensor = self.o(self.attention(q, k, self.heads(self.v(x))))
        return out


class CrossAttention(SelfAttention):
    """Attention from tokens to text rows: no rotation, no mask, all rows attended."""

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """``x (B, L, D)``, ``context (B, S, D)`` to ``(B, L, D)``."""
        q = self.heads(self.norm_q(self.q(x)))
        k = self.heads(self.norm_k(self.k(context)))
        out: Tensor = self.o(self.attention(q, k, self.heads(self.v(context))))
        return out


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward; the first and the last are modulated."""

    def __init__(
        self, config: TransformerConfig, ops: Ops, attention: Attention, factory: dict[str, object]
    ) -> None:
        """``norm3`` (official name) is the affine norm before cross-attention."""
        super().__init__()
        dim = config.dim
        self.eps = config.eps
        self.self_attn = SelfAttention(config, ops, attention, factory)
        self.norm3 = ops.LayerNorm(dim, eps=config.eps, **factory)
        self.cross_attn = CrossAttention(config, ops, attention, factory)
        self.ffn = nn.Sequential(
            ops.Linear(dim, config.ffn_dim, **factory),
            nn.GELU(approximate="tanh"),
            ops.Linear(config.ffn_dim, dim, **factory),
        )
        self.modulation = nn.Parameter(torch.empty(1, SLOTS, dim, **factory))  # type: ignore[call-overload]

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        """Map the hidden state ``(B, L, D)`` float32 to the next one."""
        dtype = tokens.context.dtype
        self_mod, ffn_mod = self._modulation(tokens.time)
        y = modulate(layer_norm(x, self.eps), self_mod.shift, self_mod.scale).to(dtype)
        x = torch.addcmul(x, self.self_attn(y, tokens.rope).float(), self_mod.gate)
        x = x + self.cross_attn(self.norm3(x).to(dtype), tokens.context).float()
        y = modulate(layer_norm(x, self.eps), ffn_mod.shift, ffn_mod.scale).to(dtype)
        return torch.addcmul(x, self.ffn(y).float(), ffn_mod.gate)

    def _modulation(self, time: Tensor) -> tuple[Modulation, Modulation]:
        rows = (current(self, "modulation", time) + time).chunk(SLOTS, dim=1)
        return Modulation(*rows[:3]), Modulation(*rows[3:])


class Head(nn.Module):
    """Modulated norm and projection to patch values, in float32."""

    def __init__(self, config: TransformerConfig, ops: Ops, factory: dict[str, object]) -> None:
        """The projection gives ``out_dim`` values per latent cell of the patch."""
        super().__init__()
        self.eps = config.eps
        patch_volume = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
        self.head = ops.Linear(config.dim, patch_volume * config.out_dim, **factory)
        self.modulation = nn.Parameter(torch.empty(1, 2, config.dim, **factory))  # type: ignore[call-overload]

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """``x (B, L, D)``, ``time (B, D)`` (before the slot projection) to ``(B, L, 4 C)``."""
        shift, scale = (current(self, "modulation", time) + time[:, None]).chunk(2, dim=1)
        out: Tensor = self.head(modulate(layer_norm(x, self.eps), shift, scale))
        return out


class WanTransformer(nn.Module):
    """One expert: ``(noisy latents, timestep, text) -> velocity``.

    Source: official ``wan/modules/model.py`` (``WanModel``, text-to-video variant).
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        ops: Ops = TorchOps,
        attention: Attention = sdpa,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Build the modules without meaningful weights; load an official state dict into them."""
        super().__init__()
        factory: dict[str, object] = {"device": device, "dtype": dtype}
        self.config = config
        self.dtype = dtype or torch.get_default_dtype()
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
            [Block(config, ops, attention, factory) for _ in range(config.num_layers)]
        )
        self.head = Head(config, ops, factory)

    def forward(self, x: Tensor, timestep: Tensor, context: Tensor) -> Tensor:
        """Predict the flow velocity ``noise - clean``.

        Args:
            x: ``(B, C, T, h, w)`` noisy normalised latents; h and w even. Its dtype is the dtype
                of the matrix products.
            timestep: ``(B,)`` real, ``1000 * sigma`` in [0, 1000].
            context: ``(B, S, text_dim)`` encoded text, S <= 512; missing rows count as zeros.

        Returns:
            ``(B, out_dim, T, h, w)`` float32.

        Raises:
            ValueError: wrong channel count, odd latent size or text of another width.
        """
        self._check(x, context)
        grid = token_grid(*x.shape[2:])
        hidden, time, tokens = self.embed(x, timestep, context, grid)
        for block in self.blocks:
            hidden = block(hidden, tokens)
        return self.unembed(hidden, time, grid)

    def embed(
        self, x: Tensor, timestep: Tensor, context: Tensor, grid: TokenGrid
    ) -> tuple[Tensor, Tensor, Tokens]:
        """Everything before the blocks: hidden ``(B, L, D)`` float32, time ``(B, D)``, tokens."""
        # Contiguous: every later pass over the tokens would otherwise stride across channels.
        hidden = rearrange(self.patch_embedding(x), "b d t h w -> b (t h w) d").float().contiguous()
        time = self.time_embedding(timestep_features(timestep, self.config.freq_dim))
        slots = self.time_projection(time)
        rows = torch.nn.functional.pad(
            context.to(x.dtype), (0, 0, 0, self.config.text_len - context.shape[1])
        )
        head_dim = self.config.dim // self.config.num_heads
        tokens = Tokens(
            time=rearrange(slots, "b (six d) -> b six d", six=SLOTS),
            context=self.text_embedding(rows),
            rope=rope_table(grid, head_dim, x.device),
        )
        return hidden, time, tokens

    def unembed(self, hidden: Tensor, time: Tensor, grid: TokenGrid) -> Tensor:
        """Hidden ``(B, L, D)`` to velocity ``(B, C, T, h, w)``; channels are fastest in a patch."""
        values: Tensor = self.head(hidden, time)
        p, q, r = self.config.patch_size
        return rearrange(
            values,
            "b (t h w) (p q r c) -> b c (t p) (h q) (w r)",
            t=grid.frames, h=grid.height, w=grid.width, p=p, q=q, r=r,
        )  # fmt: skip

    def _check(self, x: Tensor, context: Tensor) -> None:
        if x.ndim != 5 or x.shape[1] != self.config.in_dim:
            raise ValueError(
                f"latents of shape {tuple(x.shape)} do not fit this expert; "
                f"it needs (batch, {self.config.in_dim}, frames, height / 8, width / 8)"
            )
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
