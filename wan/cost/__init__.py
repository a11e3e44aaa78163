"""What a run costs, known before it: calls, operations, seconds, memory, disk, and what looks odd.

Nothing heavy is read: headers and shapes tell all but seconds, and those come from one block of random
weights that is timed when asked, or from an earlier run.
"""

from .advice import Circumstances, advice
from .designs import AUTO, CHOICES, Choice, choose_design
from .flops import block_flops, forward_flops
from .forecast import SAMPLING, Forecast, Networks, Phase, Weights, make_forecast
from .forwards import StageForwards, count_forwards, evaluated_levels
from .measured import Measured
from .memory import Expert, StepBytes, step_bytes, text_bytes
from .networks import held_weights, read_networks
from .room import device_bytes
from .text import duration, forecast_lines, quantity
from .timing import Measurement, time_block

__all__ = [
    "AUTO",
    "CHOICES",
    "SAMPLING",
    "Choice",
    "Circumstances",
    "Expert",
    "Forecast",
    "Measured",
    "Measurement",
    "Networks",
    "Phase",
    "StageForwards",
    "StepBytes",
    "Weights",
    "advice",
    "block_flops",
    "choose_design",
    "count_forwards",
    "device_bytes",
    "duration",
    "evaluated_levels",
    "forecast_lines",
    "forward_flops",
    "held_weights",
    "make_forecast",
    "quantity",
    "read_networks",
    "step_bytes",
    "text_bytes",
    "time_block",
]
