"""What a compiler made of a graph, layer by layer: which nodes became one kernel, how much memory it plans for."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

REPORT_SUFFIX = ".layers.json"
"""Of the report beside a plan."""
_NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_LAYER = re.compile(r"Name: (?P<name>.+?), LayerType: (?P<kind>\w+),")
_GROUP = re.compile(r"_myl(\d+)_\d+$")
_PROFILE = re.compile(r"\[profile (\d+)\]")


@dataclass(frozen=True)
class Layer:
    """One kernel. profile: index of the optimisation profile; nodes: of the ONNX graph that it computes."""

    name: str
    kind: str
    profile: int
    nodes: tuple[str, ...]

    def kernel(self) -> str:
        """A name that layers of the same make share: the kernel's own where it has one, else the kind."""
        name = _GROUP.sub("", self.name)
        return name.strip("_") if re.fullmatch(r"_[a-z]\w*", name) else self.kind

    def is_fused_attention(self) -> bool:
        """Whether it is attention as one kernel (`gemm_mha` for many rows, `gemv_mha` for one)."""
        return "_mha_" in self.kernel()


@dataclass(frozen=True)
class LayerReport:
    """given_bytes: weights that the compiler got; weight_bytes: those that the plan stores; scratch_bytes: memory for
    intermediate results, of each profile.
    """

    given_bytes: int
    weight_bytes: int
    scratch_bytes: tuple[int, ...]
    layers: tuple[Layer, ...]

    def of_profile(self, profile: int) -> list[Layer]:
        return [layer for layer in self.layers if layer.profile == profile]


def parse_log(messages: list[str], given_bytes: int) -> LayerReport:
    """The report in the messages of a TensorRT builder that was asked for details."""
    text = "\n".join(messages)
    weights = re.findall(r"Total Weights Memory: (\d+) bytes", text)
    scratch = re.findall(r"Total Activation Memory: (\d+) bytes", text)
    # None at all is no reason to lose a plan that is finished.
    layers = [layer for message in messages if message.startswith("Layers:\n") for layer in _layers(message)]
    return LayerReport(given_bytes, sum(map(int, weights)), tuple(map(int, scratch)), tuple(layers))


def _layers(table: str) -> Iterator[Layer]:
    """The rows of the table. Layers that were compiled together share a number in their names, others say which profile
    they belong to unless it is the first.
    """
    groups: list[str] = []
    for row in table.split("\n\n")[0].splitlines():
        if (found := _LAYER.match(row)) is None:
            continue
        name = found["name"]
        if group := _GROUP.search(name):
            if group[1] not in groups:
                groups.append(group[1])
            profile = groups.index(group[1])
        else:
            said = _PROFILE.search(row)
            profile = int(said[1]) if said else 0
        yield Layer(name, found["kind"], profile, tuple(dict.fromkeys(_NODE.findall(row))))


def node_label(node: str) -> str:
    """`TRT_Attention_node_19 | model/layers.0/self_attn/visual_attention_node_31 (…)` -> one name for every layer.

    -> `layers.*.self_attn.visual_attention:TRT_Attention`
    """
    inner, _, outer = node.partition(" | ")
    path = re.sub(r"_node_[0-9_]+", "", (outer or inner).partition(" (")[0])
    path = re.sub(r"\blayers[./]\d+\b", "layers.*", path.removeprefix("model/")).replace("/", ".")
    return f"{path}:{re.sub(r'_node_[0-9_]+', '', inner)}" if outer else path
