"""Published weights: any layout -> one view of official keys, checked before a weight is read."""

from .card import format_card
from .defaults import family_defaults
from .identity import Identity, check_pair, identify, same_weights
from .layouts import KINDS, SPIECE_KEY, Checkpoint, open_checkpoint
from .load import (
    SPIECE_FILE,
    build_decoder,
    check_complete,
    check_keys,
    check_scales,
    fill,
    find_pieces,
    find_tokenizer,
    give_tokenizer,
    load_decoder,
    load_text_encoder,
    load_transformer,
    load_vae,
    place,
    weights,
)
from .parts import BUNDLED, PARTS, find_parts
from .sizes import (
    detect_text_config,
    detect_transformer_config,
    detect_vae_config,
    named_latents,
    takes_normalized,
)

__all__ = [
    "BUNDLED",
    "KINDS",
    "PARTS",
    "SPIECE_FILE",
    "SPIECE_KEY",
    "Checkpoint",
    "Identity",
    "build_decoder",
    "check_complete",
    "check_keys",
    "check_pair",
    "check_scales",
    "detect_text_config",
    "detect_transformer_config",
    "detect_vae_config",
    "family_defaults",
    "fill",
    "find_parts",
    "find_pieces",
    "find_tokenizer",
    "format_card",
    "give_tokenizer",
    "identify",
    "load_decoder",
    "load_text_encoder",
    "load_transformer",
    "load_vae",
    "named_latents",
    "open_checkpoint",
    "place",
    "same_weights",
    "takes_normalized",
    "weights",
]
