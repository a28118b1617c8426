"""The builder's table in rows of our own."""

from engine.build.layer_report import Layer, node_label, parse_log

ATTENTION = "TRT_Attention_node_19 | model/layers.2/self_attn/visual_attention_node_83 (visual_attention)"
MESSAGES = [
    "Total Activation Memory: 1000 bytes",
    "Total Activation Memory: 200 bytes",
    "Total Weights Memory: 476800 bytes",
    "Layers:\n"
    "Name: [ShapeHostToDeviceCopy 0], LayerType: ShapeHostToDevice, Inputs: [], Outputs: []\n"
    "Name: _gemm_mha_v2_myl1_15, LayerType: kgen, Inputs: [ { Name: a } ], TacticName: , StreamId: 0, "
    f"Metadata: [ONNX Layer: {ATTENTION}][ONNX Layer: {ATTENTION}]\n"
    "Name: layer [profile 1], LayerType: PluginV3, Inputs: [], Outputs: []\n"
    "Name: a/MatMul_node_3 [profile 1]+a/MatMul_node_5 [profile 1]_myl3_2, LayerType: gemm, Inputs: [], "
    "Metadata: [ONNX Layer: model/layers.0/a/MatMul_node_3][ONNX Layer: model/layers.0/a/MatMul_node_5]\n"
    "\nI/O Tensors:\n Name: input_ids, IOMode: Input",
]


def test_rows_become_layers() -> None:
    report = parse_log(MESSAGES, given_bytes=470000)
    assert (report.given_bytes, report.weight_bytes, report.scratch_bytes) == (470000, 476800, (1000, 200))
    names = ("model/layers.0/a/MatMul_node_3", "model/layers.0/a/MatMul_node_5")
    assert report.of_profile(0) == [
        Layer("[ShapeHostToDeviceCopy 0]", "ShapeHostToDevice", 0, ()),
        Layer("_gemm_mha_v2_myl1_15", "kgen", 0, (ATTENTION,)),
    ]
    assert report.of_profile(1) == [
        Layer("layer [profile 1]", "PluginV3", 1, ()),
        Layer("a/MatMul_node_3 [profile 1]+a/MatMul_node_5 [profile 1]_myl3_2", "gemm", 1, names),
    ]
    assert [layer.kernel() for layer in report.layers] == ["ShapeHostToDevice", "gemm_mha_v2", "PluginV3", "gemm"]
    assert [layer.is_fused_attention() for layer in report.layers] == [False, True, False, False]


def test_a_builder_that_prints_no_table_loses_no_plan() -> None:
    assert parse_log(MESSAGES[:3], given_bytes=1).layers == ()


def test_nodes_of_all_decoder_layers_have_one_label() -> None:
    assert node_label(ATTENTION) == "layers.*.self_attn.visual_attention:TRT_Attention"
    assert node_label("model/layers.11/mlp/up_proj/MatMul_node_107") == "layers.*.mlp.up_proj.MatMul"
    assert node_label("lm_head/MatMul_node_116") == "lm_head.MatMul"
    assert node_label("Softmax_node_37_657") == "Softmax"
