"""Names of the transformer's tensors: the official checkpoint on one side, diffusers on the other.

Source: the state dicts of the official ``WanModel`` and of diffusers' ``WanTransformer3DModel``. The two
swap the numbers of the norms around cross-attention: the affine one is ``norm3`` here, ``norm2`` there.
Names of the image and VACE branches are known too, so that they are recognised where they do not belong.
"""

from __future__ import annotations

import re

_TOP = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "head.head": "proj_out",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "vace_patch_embedding": "vace_patch_embedding",
}
_BARE = {"head.modulation": "scale_shift_table"}
_BARE["img_emb.emb_pos"] = "condition_embedder.image_embedder.pos_embed"
_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"} | {
    name: name for name in ("norm_q", "norm_k")
}
_BLOCK = {
    **{f"self_attn.{ours}": f"attn1.{theirs}" for ours, theirs in _ATTENTION.items()},
    **{f"cross_attn.{ours}": f"attn2.{theirs}" for ours, theirs in _ATTENTION.items()},
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "cross_attn.norm_k_img": "attn2.norm_added_k",
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
}
_VACE = {**_BLOCK, "before_proj": "proj_in", "after_proj": "proj_out"}
_TABLE = "scale_shift_table"

_TOP_BACK = {theirs: ours for ours, theirs in _TOP.items()}
_BARE_BACK = {theirs: ours for ours, theirs in _BARE.items()}
_VACE_BACK = {theirs: ours for ours, theirs in _VACE.items()}
_BLOCK_BACK = {theirs: ours for ours, theirs in _BLOCK.items()}
_IN_BLOCK = re.compile(r"((?:vace_)?blocks)\.(\d+)\.(.+)")


def official_key(diffusers_key: str) -> str | None:
    """Official name of a tensor of diffusers' ``WanTransformer3DModel``, or None if it is not one.

    The last part is kept as it is, so ``....to_q.weight_scale`` of a quantised file finds its layer too.
    """
    if name := _BARE_BACK.get(diffusers_key):
        return name
    if match := _IN_BLOCK.fullmatch(diffusers_key):
        group, number, rest = match.groups()
        if rest == _TABLE:
            return f"{group}.{number}.modulation"
        return _renamed(
            f"{group}.{number}.", rest, _VACE_BACK if group == "vace_blocks" else _BLOCK_BACK
        )
    return _renamed("", diffusers_key, _TOP_BACK)


def diffusers_key(official_key: str) -> str | None:
    """The inverse of :func:`official_key`, or None if unknown."""
    if name := _BARE.get(official_key):
        return name
    if match := _IN_BLOCK.fullmatch(official_key):
        group, number, rest = match.groups()
        if rest == "modulation":
            return f"{group}.{number}.{_TABLE}"
        return _renamed(f"{group}.{number}.", rest, _VACE if group == "vace_blocks" else _BLOCK)
    return _renamed("", official_key, _TOP)


def _renamed(prefix: str, key: str, table: dict[str, str]) -> str | None:
    module, _, leaf = key.rpartition(".")
    name = table.get(module)
    return f"{prefix}{name}.{leaf}" if name else None


def known_keys(num_blocks: int) -> list[str]:
    """Official names of every tensor such a network may have, with ``num_blocks`` blocks of each kind.

    Norms over queries and keys have no bias in fact; the names are for recognition, not for counting.
    """
    modules = list(_TOP)
    bare = list(_BARE)
    for number in range(num_blocks):
        modules += [f"blocks.{number}.{name}" for name in _BLOCK]
        modules += [f"vace_blocks.{number}.{name}" for name in _VACE]
        bare += [f"{group}.{number}.modulation" for group in ("blocks", "vace_blocks")]
    return bare + [f"{module}.{leaf}" for module in modules for leaf in ("weight", "bias")]
