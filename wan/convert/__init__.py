"""Weights and LoRAs from one published form to another."""

from .lora import convert_lora
from .weights import DTYPES, LAYOUTS, convert

__all__ = ["DTYPES", "LAYOUTS", "convert", "convert_lora"]
