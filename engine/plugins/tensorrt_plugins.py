"""All plugins of the domain `sgl` for full TensorRT."""

from engine.plugins.prune_visual_tokens import tensorrt_plugin as prune_visual_tokens
from engine.plugins.visual_attention import tensorrt_plugin as visual_attention


def register_plugins(capability: int, lazy_register: bool = False) -> None:
    """Make them known to TensorRT, once in a process, before a graph that uses them is parsed.

    capability: compute capability of the GPU, as in 90. lazy_register: only when one is used, not by name from a graph.
    The network wants the flag PREFER_AOT_PYTHON_PLUGINS, the builder the preview feature ALIASED_PLUGIN_IO_10_03.
    TensorRT 11.1 and 11.2 keep some GPU memory at each change of a plugin's shapes (NVIDIA/TensorRT issue 4849).
    """
    visual_attention.register(capability, lazy_register)
    prune_visual_tokens.register(capability, lazy_register)
