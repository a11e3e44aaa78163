"""ComfyUI graphs, from the API format or the editor's, as nodes with values and links."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

_WIDGETS: Mapping[str, tuple[str, ...]] = {
    "KSamplerAdvanced": (
        "add_noise", "noise_seed", "control_after_generate", "steps", "cfg", "sampler_name",
        "scheduler", "start_at_step", "end_at_step", "return_with_leftover_noise",
    ),
    "ModelSamplingSD3": ("shift",),
    "UNETLoader": ("unet_name",),
    "UnetLoaderGGUF": ("unet_name",),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "CLIPTextEncode": ("text",),
    "EmptyHunyuanLatentVideo": ("width", "height", "length"),
    "PrimitiveNode": ("value",),
    "PrimitiveInt": ("value",),
    "PrimitiveFloat": ("value",),
    "PrimitiveStringMultiline": ("value",),
    "INTConstant": ("value",),
    "FloatConstant": ("value",),
}  # fmt: skip
"""Kind -> names of its widgets in the editor's order, as far as a recipe needs them."""
_BYPASSED, _MUTED = 4, 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """One node.

    Attributes:
        name: its number in the graph.
        kind: its class.
        values: what its widgets hold.
        links: input -> number of the node it comes from.
        active: False if it is muted or bypassed.
    """

    name: str
    kind: str
    values: Mapping[str, object] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    active: bool = True


Graph = Mapping[str, Node]


def read_graphs(content: object) -> list[Graph]:
    """The graphs in a JSON document: one of the API format, or a workflow's and its subgraphs'.

    None if it is something else.
    """
    if isinstance(content, dict) and isinstance(content.get("prompt"), dict):
        content = content["prompt"]
    if isinstance(content, dict) and isinstance(content.get("nodes"), list):
        return [_read_workflow(part) for part in _scopes(content)]
    nodes = content.items() if isinstance(content, dict) else ()
    found = {
        str(name): _read_api(str(name), node)
        for name, node in nodes
        if isinstance(node, dict) and isinstance(node.get("class_type"), str)
    }
    return [found] if found else []


def upstream(graph: Graph, node: Node, inputs: Sequence[str]) -> Iterator[Node]:
    """The nodes before ``node``, nearest first, along the first of ``inputs`` that is connected."""
    seen = {node.name}
    while True:
        name = next((node.links[key] for key in inputs if key in node.links), None)
        if name is None or name in seen or name not in graph:
            return
        seen.add(name)
        node = graph[name]
        yield node


def value_of(graph: Graph, node: Node, name: str) -> object:
    """What a widget holds; over a link what the constant there holds, None if it is none."""
    if name not in node.links:
        return node.values.get(name)
    source = graph.get(node.links[name])
    if source is None:  # from outside a subgraph: the widget keeps its latest value
        return node.values.get(name)
    return source.values.get("value")


def _read_api(name: str, node: Mapping[str, object]) -> Node:
    inputs = node.get("inputs")
    given = inputs if isinstance(inputs, dict) else {}
    links = {
        key: str(value[0]) for key, value in given.items() if isinstance(value, list) and value
    }
    values = {key: value for key, value in given.items() if key not in links}
    return Node(name=name, kind=str(node["class_type"]), values=values, links=links)


def _scopes(content: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    yield content
    inside = content.get("definitions")
    subgraphs = inside.get("subgraphs") if isinstance(inside, dict) else None
    for part in subgraphs if isinstance(subgraphs, list) else ():
        if isinstance(part, dict) and isinstance(part.get("nodes"), list):
            yield part


def _read_workflow(content: Mapping[str, object]) -> Graph:
    origins = dict(_links(content.get("links")))
    nodes = content["nodes"]
    assert isinstance(nodes, list)
    found = (_read_editor(node, origins) for node in nodes if isinstance(node, dict))
    return {node.name: node for node in found}


def _links(given: object) -> Iterator[tuple[str, str]]:
    """Number of a link -> node it comes from: lists in a workflow, objects in a subgraph."""
    for link in given if isinstance(given, list) else ():
        if isinstance(link, list) and len(link) >= 2:
            yield str(link[0]), str(link[1])
        elif isinstance(link, dict) and {"id", "origin_id"} <= link.keys():
            yield str(link["id"]), str(link["origin_id"])


def _read_editor(node: Mapping[str, object], origins: Mapping[str, str]) -> Node:
    kind, held = str(node.get("type")), node.get("widgets_values")
    names = _WIDGETS.get(kind, ())
    if isinstance(held, list):
        if "control_after_generate" in names and len(held) == len(names) - 1:
            names = tuple(name for name in names if name != "control_after_generate")
        values = dict(zip(names, held, strict=False))
    else:
        values = dict(held) if isinstance(held, dict) else {}
    inputs = node.get("inputs")
    links = {
        str(entry.get("name")): origins[str(entry["link"])]
        for entry in (inputs if isinstance(inputs, list) else ())
        if isinstance(entry, dict) and str(entry.get("link")) in origins
    }
    active = node.get("mode") not in (_BYPASSED, _MUTED)
    return Node(name=str(node.get("id")), kind=kind, values=values, links=links, active=active)
