"""The causal streaming video VAE."""

from .causal import CausalCache as CausalCache
from .model import WanVAE as WanVAE
from .model import denormalize as denormalize
from .model import normalize as normalize
