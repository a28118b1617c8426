"""Write docs/kernels.md: what the kernels need of each GPU that they are compiled for. No GPU is needed."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import triton

from engine.cli.command_line import run_command
from engine.gpu import CAPABILITIES
from engine.plugins.compile import PTX_VERSION, usage
from tools.gpu_check.kernels import HEADS, WIDTH, compile_named, kernels

TEXT = """# Kernels

Written by `python -m tools.gpu_check.kernel_table`: the Triton kernels of the plugins, compiled for every supported GPU
at the dimensions of InternVL2-2B's language model ({heads} heads, {kv_heads} KV heads, head size {dim}, hidden size
{width}, bf16). A cell is registers per thread × threads of a block / KiB of shared memory, and bytes of spilled
registers if there are any. PTX {version}; compiled by Triton {triton}; nothing here was run on a GPU.

| kernel | {columns} |
|---|{rule}
{rows}

- `attend`: flash attention over the KV cache with grouped heads, and the log-sum-exp of each row. In decode the cache
  is attended in splits, which `combine_splits` adds up.
- `receive`: what each visual token received from the scored rows, per KV head, recomputed from the log-sum-exp.
- `prune_visual_tokens`: the rows that survive a prune point.

No kernel uses atomics and every sum has a fixed order, so two runs give the same bits.
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_check.kernel_table", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/kernels.md"), help="(default: %(default)s)")
    arguments = parser.parse_args(argv)
    return run_command(lambda: write_table(arguments.out))


def write_table(path: Path, capabilities: Sequence[int] = CAPABILITIES) -> None:
    names = list(kernels(capabilities[0]))
    rows = [f"| {name} | {' | '.join(cell(name, capability) for capability in capabilities)} |" for name in names]
    text = TEXT.format(
        heads=HEADS.num_heads,
        kv_heads=HEADS.num_kv_heads,
        dim=HEADS.head_dim,
        width=WIDTH,
        version=PTX_VERSION / 10,
        triton=triton.__version__,
        columns=" | ".join(f"sm_{capability}" for capability in capabilities),
        rule="---|" * len(capabilities),
        rows="\n".join(rows),
    )
    path.write_text(text, encoding="utf-8")
    print(f"{path}: {len(names)} kernels on {len(capabilities)} architectures")


def cell(name: str, capability: int) -> str:
    binary = compile_named(name, capability)
    used = usage(binary.ptx, capability)
    spills = f", {used.spill_bytes} B spilled" if used.spill_bytes else ""
    return f"{used.registers} × {binary.threads} / {binary.shared_bytes / 1024:.1f}{spills}"


if __name__ == "__main__":
    sys.exit(main())
