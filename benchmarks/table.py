"""All cases in one Markdown table, from the committed results.

    python -m benchmarks.table [--write]

``--write`` puts it into docs/benchmarks.md in place of the table there. Of several lines of one case
and shape the last counts. A case without a line is told as not measured, a line that is missed by name.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
START, END = "<!-- python -m benchmarks.table --write -->", "<!-- end of the table -->"
HEAD = ("", "case", "shape", "ours", "theirs", "floor", "pass line", "")
COMFYUI, DIFFUSERS = "ComfyUI", "diffusers"

Line = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A number and the line it must stay under, or over."""

    what: str
    value: float
    limit: float
    over: bool = False

    @property
    def met(self) -> bool:
        """Whether it does."""
        return self.value >= self.limit if self.over else self.value <= self.limit

    @property
    def line(self) -> str:
        """The line in words."""
        sign = "≥ " if self.over else "≤ " if self.limit else ""
        return f"{sign}{self.limit:g} {self.what}".strip()


@dataclass(frozen=True, kw_only=True)
class Row:
    """One case at one shape."""

    shape: str
    ours: str
    gates: Sequence[Gate]
    theirs: str = ""
    floor: str = ""

    @property
    def verdict(self) -> str:
        """Met, or what is missed with its number."""
        missed = [f"{gate.value:g} {gate.what}".strip() for gate in self.gates if not gate.met]
        if not self.gates:
            return "no line"
        return f"**missed**: {', '.join(missed)}" if missed else "met"


def ratios(values: Mapping[str, float], over: float, skip: Sequence[str] = ("ours", "bare")) -> str:
    """Those of others over ``over``, by name."""
    names = {"comfyui": COMFYUI, "diffusers": DIFFUSERS}
    told = {names[k]: v / over for k, v in values.items() if k in names and k not in skip}
    return ", ".join(f"{name} {ratio:.2f}" for name, ratio in sorted(told.items()))


def block(lines: Sequence[Line]) -> list[Row]:
    """One block or forward, timed beside its kernels."""
    rows = []
    for line in latest(lines, "tokens", "layers"):
        over, read = line["over_bare"], "ours, text read once"
        name = read if read in over else "ours"
        best = over[name]
        unit = "s" if "seconds" in line else "s a layer"
        seconds = line.get("seconds") or line["seconds_per_layer"]
        gates = [Gate(what="× kernels", value=best, limit=1.10)]
        for other, words, limit in (("diffusers", DIFFUSERS, 0.9), ("comfyui", COMFYUI, 1.0)):
            if other in over:
                value = round(best / over[other], 3)
                gates.append(Gate(what=f"× {words}", value=value, limit=limit))
        if (
            found := line.get("error", {}).get(name) or line.get("error", {}).get("ours")
        ) is not None:
            gates.append(Gate(what="cosine", value=found["cosine"], limit=0.9999, over=True))
        layers = f"{line['layers']} layers, " if "layers" in line else ""
        rows.append(
            Row(
                shape=f"{layers}{line['tokens']} tokens{name.removeprefix('ours')}",
                ours=f"{seconds[name]} {unit}",
                theirs=ratios(over, best),
                floor=f"{seconds['bare']} {unit}",
                gates=gates,
            )
        )
    return rows


def live(lines: Sequence[Line]) -> list[Row]:
    """Live activations in hidden states."""
    held = [(line, line["hidden_states"]) for line in latest(lines, "tokens")]
    return [
        Row(
            shape=f"{line['tokens']} tokens",
            ours=f"{found['ours']} u",
            theirs=ratios(found, found["ours"]),
            floor="3.0 u",
            gates=[Gate(what="u", value=found["ours"], limit=3.3)],
        )
        for line, found in held
    ]


def bytes_(lines: Sequence[Line]) -> list[Row]:
    """Bytes that a block touches beside products and attention."""
    return [
        Row(
            shape=f"{line['tokens']} tokens, {where}",
            ours=f"{line[key]['ours']:g}",
            theirs=ratios(line[key], line[key]["ours"]),
            floor="38 fused",
            gates=[Gate(what="bytes", value=line[key]["ours"], limit=75.0)],
        )
        for line in latest(lines, "tokens")
        for key, where in (("bytes", "kernels of a GPU"), ("bytes_cpu", "of a CPU"))
    ]


def lora(lines: Sequence[Line]) -> list[Row]:
    """Applying, changing and removing a LoRA, and what it costs while it is there."""
    rows = []
    for line in latest(lines, "layers"):
        seconds = {name: sum(steps.values()) for name, steps in line["seconds"].items()}
        use = line["use"]
        rows.append(
            Row(
                shape=f"rank {line['rank']}, {line['layers']} layers of 1.3B",
                ours=f"{seconds['ours']:.2g} s, then {100 * use['share']:.0f} % of a block",
                theirs=ratios(seconds, seconds["ours"]) + ", then 0 %",
                floor=f"{line['floor']} s",
                gates=[
                    Gate(what="× floor", value=line["over_floor"]["ours"]["apply"], limit=2.0),
                    Gate(what="values left changed", value=line["left"]["ours"], limit=0.0),
                    Gate(what="of a block at each use", value=use["share"], limit=0.0),
                ],
            )
        )
    return rows


def vae(lines: Sequence[Line]) -> list[Row]:
    """Decoding, frame by frame: seconds, and the peak at 33 frames."""
    rows = []
    decoded = [line for line in lines if line["direction"] == "decode"]
    timed = [line for line in decoded if "seconds" in line]
    for first in latest([line for line in timed if line["way"] == "ours"], "dtype", "latent"):
        alike = [line for line in decoded if all(line[k] == first[k] for k in ("dtype", "latent"))]
        others = {_way(line): line["over_ours"] for line in alike if line in timed}
        peaks = {_way(line): line["peak_mb"]["33"] for line in alike if "33" in line["peak_mb"]}
        ours = others.pop("ours")
        gates = [
            Gate(what="× convolutions", value=first["convolutions"], limit=1.2),
            Gate(
                what="× ours, the fastest other", value=min(others.values()), limit=ours, over=True
            ),
        ]
        if own := peaks.pop("ours", None):
            share = round(own / min(peaks.values()), 3)
            gates.append(Gate(what="× the least peak of others", value=share, limit=0.5))
        shares = _shares({_way(line): line["in_use_mb"] for line in alike})
        if len(shares) > 1:
            (_, short), (length, long) = shares[0], shares[-1]
            what = f"× the share in use at 33 frames, at {length}"
            gates.append(Gate(what=what, value=round(long / short, 3), limit=1))
        height, width = (8 * side for side in first["latent"])
        told = f", {own:.0f} MB" if own else ""
        rows.append(
            Row(
                shape=f"{height}x{width}, {first['dtype']}",
                ours=f"{first['seconds']} s a latent frame{told}",
                theirs=", ".join(
                    f"{n} {over:.2f}" + (f", {peaks[n]:.0f} MB" if n in peaks else "")
                    for n, over in others.items()
                ),
                floor=f"{first['seconds'] / first['convolutions']:.2f} s",
                gates=gates,
            )
        )
    return rows


def _shares(in_use: Mapping[str, Mapping[str, float]]) -> list[tuple[int, float]]:
    """Ours of the least of others, by length from 33 frames on, where all were measured."""
    measured = set.intersection(*(set(found) for found in in_use.values()))
    others = [found for way, found in in_use.items() if way != "ours"]
    return [
        (int(length), in_use["ours"][length] / min(found[length] for found in others))
        for length in sorted(measured, key=int)
        if int(length) >= 33
    ]


def _way(line: Line) -> str:
    return f"{line['way']} {line['comfyui']}" if "comfyui" in line else str(line["way"])


def growth(lines: Sequence[Line]) -> list[Row]:
    """How operations, time and memory grow with the length."""
    rows = []
    for line in latest(lines, "size"):
        off = max(abs(a - b) for a, b in zip(line["local"], line["law"], strict=True))
        mine, graph = line["exponents"], line.get("comfyui_graph", {}).get("exponents")
        theirs = f"{COMFYUI} time {graph['seconds']}, memory {graph['peak_mb']}" if graph else ""
        rows.append(
            Row(
                shape=f"{line['frames'][0]} to {line['frames'][-1]} frames",
                ours=f"exponents: operations {mine['flops']}, time {mine['seconds']}, memory {mine['peak']}",
                theirs=theirs,
                floor="1 + attention's share",
                gates=[
                    Gate(what="from the law", value=round(off, 3), limit=0.02),
                    Gate(what="× the longer of decoding and encoding", value=max(line["to_file"]), limit=1.1),
                ],
            )
        )  # fmt: skip
    return rows


def declared(lines: Sequence[Line]) -> list[Row]:
    """Cases whose lines say their row themselves, under ``row``: the fields of :class:`Row` and :class:`Gate`."""
    rows = [line["row"] for line in lines if "row" in line]
    return [Row(**{**row, "gates": [Gate(**gate) for gate in row["gates"]]}) for row in rows]


def latest(lines: Sequence[Line], *keys: str) -> list[Line]:
    """Of the lines that agree in ``keys``, the last each."""
    return list({json.dumps([line.get(key) for key in keys]): line for line in lines}.values())


Read = Callable[[Sequence[Line]], list[Row]]
CASES: Sequence[tuple[str, str, Read]] = (
    ("one block of A14B", "block", block),
    ("a forward of 1.3B", "forward", block),
    ("live activations", "live", live),
    ("bytes by value", "live", bytes_),
    ("streaming from the file", "stream", declared),
    ("cold load", "cold_load", declared),
    ("change of experts", "swap", declared),
    ("a LoRA's cycle", "lora_cycle", lora),
    ("VAE stream", "vae_stream", vae),
    ("growth with length", "growth", growth),
)
"""Words, the name in the lines, what reads them: in the order of the table."""


def read_lines(folder: Path = RESULTS) -> dict[str, list[Line]]:
    """All committed lines, by case."""
    found: dict[str, list[Line]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for text in path.read_text().splitlines():
            line = json.loads(text)
            found.setdefault(line.get("case") or line["benchmark"], []).append(line)
    return found


def table(lines: Mapping[str, Sequence[Line]]) -> str:
    """The table, and under it what the lines say of hardware and versions."""
    rows: list[Sequence[str]] = [HEAD, ["---"] * len(HEAD)]
    used: list[Line] = []
    for number, (words, name, read) in enumerate(CASES, 1):
        given = lines.get(name, ())
        used += given
        told = read(given)
        if not told:
            found = "lines without a row" if given else "not measured"
            rows.append([str(number), words, *[""] * 5, found])
        for index, row in enumerate(told):
            first = ("", "") if index else (str(number), words)
            gates = "; ".join(gate.line for gate in row.gates)
            rows.append([*first, row.shape, row.ours, row.theirs, row.floor, gates, row.verdict])
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{text}\n\n{machines(used)}"


def machines(lines: Sequence[Line]) -> str:
    """Hardware and versions of lines in one sentence."""
    keys = ("processor", "cores", "torch", "diffusers", "comfyui")
    told = {key: sorted({str(line[key]) for line in lines if line.get(key)}) for key in keys}
    processor, cores, *rest = (" and ".join(told[key]) for key in keys)
    names = ("torch", DIFFUSERS, COMFYUI)
    versions = ", ".join(
        f"{name} {found}" for name, found in zip(names, rest, strict=True) if found
    )
    return f"Measured on {cores} cores of {processor}; {versions}."


def main() -> None:
    """Print the table, or write it into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    text = table(read_lines())
    if given.write:
        before, _, rest = PAGE.read_text().partition(START)
        after = rest.partition(END)[2]
        PAGE.write_text(f"{before}{START}\n\n{text}\n\n{END}{after}")
    else:
        print(text)


if __name__ == "__main__":
    main()
