"""The causal streaming video VAE."""

from .causal import CausalCache as CausalCache
from .decoding import decode_dtype as decode_dtype
from .decoding import decode_within as decode_within
from .memory import COUNTED as COUNTED
from .memory import PLANS as PLANS
from .memory import decode_bytes as decode_bytes
from .memory import encode_bytes as encode_bytes
from .memory import plans_from as plans_from
from .memory import strips_for as strips_for
from .model import RGB as RGB
from .model import WanVAE as WanVAE
from .model import denormalize as denormalize
from .model import normalize as normalize
from .strips import WHOLE as WHOLE
from .strips import DecodePlan as DecodePlan
from .strips import DecoderRun as DecoderRun
from .tiny import TinyVAE as TinyVAE
from .tiny import tiny_bytes as tiny_bytes
