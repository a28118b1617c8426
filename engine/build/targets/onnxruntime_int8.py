"""int8 and int4 on ONNX Runtime: every matrix of a graph gets the fastest kernel that its own activations allow.

The graph runs once on a calibration input, node by node and in two versions side by side: float32, whose activations
decide, and the quantized engine as it comes about. So the peak is one matrix in its forms, and at the end both outputs
are there to compare. Kernels are judged by running them: sums that this CPU clips (x86 without VNNI) count as error.

One rank's share of a model is never run alone, for its sums want the other ranks. The whole model is, and its matrices'
kernels are what the share's get: every rank comes to the same decisions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import replace_nodes_and_values

from engine.build.compiler import Progress
from engine.build.quantize import (
    MAX_ERROR,
    Fidelity,
    MatrixKernel,
    MatrixReport,
    Packed,
    QuantizationReport,
    choose,
    fidelity,
    pack,
)
from engine.build.storage import HEAD
from engine.build.targets.onnxruntime_evaluate import interpret, load_initializer, run_node, run_nodes
from engine.build.targets.onnxruntime_kernels import (
    Constants,
    QuantizedRows,
    multiply_blocks,
    multiply_rows,
    quantize_rows,
)
from engine.build.weight_file import WeightFile
from engine.build.weights import WeightReader, parameters
from engine.graphs.layers import Weight


@dataclass(frozen=True)
class Twin:
    """One activation in both versions; the same array twice as long as nothing before it is quantized."""

    exact: np.ndarray
    quantized: np.ndarray


def write_int8_weights(
    model: ir.Model,
    whole: ir.Model,
    reader: WeightReader,
    calibration: Mapping[str, np.ndarray],
    file: WeightFile,
    on_progress: Progress,
    most_error: Mapping[MatrixKernel, float] = MAX_ERROR,
) -> QuantizationReport:
    """Write the graph's parameters to `file`, matrices in few bits, and put kernels in the place of their MatMul.

    most_error: of the kernels that are tried, the fastest first; the head is never less than int8. whole: runs on the
    calibration input; `model` itself, or what it is one rank's share of.
    """
    quantizer = _Quantizer(model, whole, reader, file, most_error)
    twins = {name: Twin(array, array) for name, array in calibration.items()}
    output = whole.graph.outputs[0]
    result = interpret(whole.graph, twins, output, quantizer.load, quantizer.step, on_progress)
    for replace in quantizer.replacements:
        replace()
    assert all(weight.const_value is not None for _, weight in parameters(model)), "every weight leads to the output"
    return QuantizationReport(
        output=output.name or "",
        rows=result.exact[..., 0].size,
        fidelity=fidelity(result.quantized, result.exact),
        max_error=dict(most_error),
        matrices=quantizer.matrices,
    )


class _Quantizer:
    """What `interpret` asks while it walks: weights are written when they are loaded, matrices once they are judged."""

    def __init__(
        self,
        model: ir.Model,
        whole: ir.Model,
        reader: WeightReader,
        file: WeightFile,
        most_error: Mapping[MatrixKernel, float],
    ) -> None:
        self._model, self._whole, self._reader, self._file = model, whole, reader, file
        self._most_error = most_error
        self.matrices: dict[str, MatrixReport] = {}
        # Made at the end, in the order of the graph, which stays as it is while it is walked.
        self.replacements: list[Callable[[], None]] = []
        self._constants = Constants()
        self._rows: dict[ir.Value, QuantizedRows] = {}
        """By the activations: matrices that read the same share them."""

    def load(self, value: ir.Value) -> Twin:
        array = load_initializer(value, self._reader)
        if isinstance(value, Weight) and not any(_is_matmul(node) for node in value.consumers()):
            share = self._share(value)
            self._write(share, array if share is value else self._read(share))
        return Twin(array, array)

    def step(self, node: ir.Node, arguments: Sequence[Twin | None]) -> list[Twin]:
        if _is_matmul(node):
            activations, matrix = arguments
            assert activations is not None
            assert matrix is not None
            return [self._multiply(node, activations, matrix.exact)]
        exact = self._run(node, [None if twin is None else twin.exact for twin in arguments])
        if all(twin is None or twin.exact is twin.quantized for twin in arguments):
            return [Twin(array, array) for array in exact]
        quantized = self._run(node, [None if twin is None else twin.quantized for twin in arguments])
        return [Twin(*pair) for pair in zip(exact, quantized, strict=True)]

    def _run(self, node: ir.Node, arguments: Sequence[np.ndarray | None]) -> list[np.ndarray]:
        return run_node(node, arguments, self._whole)

    def _share(self, weight: Weight) -> Weight:
        """The same parameter of the graph that is written."""
        share = self._model.graph.initializers[weight.name or ""]
        assert isinstance(share, Weight)
        return share

    def _read(self, weight: Weight) -> np.ndarray:
        return self._reader.read(weight.name or "", weight)

    def _multiply(self, node: ir.Node, activations: Twin, matrix: np.ndarray) -> Twin:
        """Try the kernels on float32's activations, write the matrix for the chosen one, go on with both versions."""
        weight = node.inputs[1]
        assert isinstance(weight, Weight)
        assert weight.name is not None
        (exact,) = self._run(node, [activations.exact, matrix])
        most_error = MAX_ERROR if weight.name == HEAD else self._most_error
        forms = {kernel: pack(kernel, matrix) for kernel in most_error}
        measured: dict[MatrixKernel, Fidelity] = {}
        for kernel, packed in forms.items():
            measured[kernel] = fidelity(self._run_kernel(kernel, packed, activations.exact, matrix.shape), exact)
        kernel = choose(measured, most_error)
        self.matrices[weight.name] = MatrixReport(kernel, measured)
        if kernel is MatrixKernel.FLOAT32:
            (quantized,) = self._run(node, [activations.quantized, matrix])
        else:
            quantized = self._run_kernel(kernel, forms[kernel], activations.quantized, matrix.shape)
        share = self._share(weight)
        if share is not weight:
            forms, matrix = {}, self._read(share)
        if kernel is MatrixKernel.FLOAT32:
            self._write(share, matrix)
        else:
            (used,) = share.consumers()
            self._replace(used, share, kernel, forms.get(kernel) or pack(kernel, matrix), matrix.shape)
        return Twin(exact, quantized)

    def _run_kernel(self, kernel: MatrixKernel, packed: Packed, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        activations, data, scale = (ir.Value(name=name) for name in ("x", "data", "scale"))
        if kernel is MatrixKernel.PER_ROW:
            rows = quantize_rows(activations, Constants())
            nodes = [*rows.nodes, *multiply_rows(rows, data, scale)]
        else:
            nodes = [multiply_blocks(kernel, activations, data, scale, shape)]
        weights = {data: packed.data, scale: packed.scale}
        (result,) = run_nodes(nodes, nodes[-1].outputs, {activations: x}, weights)
        return result

    def _replace(
        self, node: ir.Node, weight: Weight, kernel: MatrixKernel, packed: Packed, shape: tuple[int, ...]
    ) -> None:
        """Remember to put the kernel in the place of a MatMul, and of the bias after it if the kernel adds one."""
        stored = "int4" if kernel is MatrixKernel.INT4 else "int8"
        data, scale = (
            ir.Value(name=f"{weight.name}.{part}", const_value=self._file.add(f"{weight.name}.{part}", array))
            for part, array in ((stored, packed.data), ("scale", packed.scale))
        )

        def replace() -> None:
            graph, x, old = self._model.graph, node.inputs[0], [node]
            assert x is not None
            for value in (data, scale):
                graph.register_initializer(value)
            if kernel is MatrixKernel.PER_ROW:
                new = [*self._quantize_rows(x), *multiply_rows(self._rows[x], data, scale)]
            else:
                add = _bias_after(node)
                new = [multiply_blocks(kernel, x, data, scale, shape, add.inputs[1] if add else None)]
                old += [add] if add else []
            last, result = old[-1].outputs[0], new[-1].outputs[0]
            result.name, result.type, result.shape = last.name, last.type, last.shape
            replace_nodes_and_values(graph, node, old, new, [last], [result])
            del graph.initializers[weight.name or ""]

        self.replacements.append(replace)

    def _quantize_rows(self, x: ir.Value) -> Sequence[ir.Node]:
        """The nodes that quantize activations; none if those that read them before had it done."""
        if x in self._rows:
            return ()
        if not self._rows:
            for value in self._constants.values():
                self._model.graph.register_initializer(value)
        self._rows[x] = quantize_rows(x, self._constants)
        return self._rows[x].nodes

    def _write(self, weight: Weight, array: np.ndarray) -> None:
        weight.const_value = self._file.add(weight.name or "", array)


def _is_matmul(node: ir.Node) -> bool:
    """Whether a node multiplies activations by a parameter."""
    return node.op_type == "MatMul" and node.domain == "" and isinstance(node.inputs[1], Weight)


def _bias_after(node: ir.Node) -> ir.Node | None:
    """The Add of a parameter [N] that alone uses a MatMul's output."""
    consumers = list(node.outputs[0].consumers())
    if len(consumers) != 1 or consumers[0].op_type != "Add":
        return None
    bias = consumers[0].inputs[1]
    return consumers[0] if isinstance(bias, Weight) and len(bias.stored) == 1 else None
