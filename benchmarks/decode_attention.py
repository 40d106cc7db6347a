"""How long does attention of one new token to a packed cache take, beside torch's and ONNX Runtime's?

    pip install '.[language]' onnxruntime onnx
    python benchmarks/decode_attention.py --context 8192 --bits 2 --json decode_attention.json

One layer of one sequence, in one process; contestants take turns, and the median of each is what counts.
There are as many copies of the layer as make every contestant's data larger than the processor's caches, as
in a model. Without ONNX Runtime its columns are null, and ``without_ort`` says why.

- ``uniform``: keys by channel and values by token, all at ``--bits`` (KIVI's layout);
- ``planned``: what the planner makes of made-up moments at ``--planned-bits``: keys before RoPE in a basis,
  values by channel, whole bits by component, a gain for each token and head;
- ``planned-mixed``: the same with a basis for values too.

``ratio_to_sdpa_bf16`` is the time by that of the faster of torch's two ways to attend in bfloat16 (grouped
heads, or heads of a group as rows). ``ratio_to_floor`` is the time by what reading the bytes held would take
at the speed of memory measured in the same rounds. The same ratios of the least times, ``fastest_...``, are
for a machine that others use too. ONNX Runtime's GroupQueryAttention appends the new token as well.

Where a CUDA device and Triton are, further rows, with its name as ``device``, are of the kernel in Triton,
beside torch's ways to attend and the memory of that device; every call is waited for.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import Memory, fastest, interleaved, machine, medians
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sagittal.language.attend import attend
from sagittal.language.cache import LowBitLayer
from sagittal.language.calibration import Calibration, Moments
from sagittal.language.extension import TRITON, chosen, computes
from sagittal.language.pages import PagedStates
from sagittal.language.plan import CachePlan
from sagittal.language.planner import fit_plan
from sagittal.language.rope import Rope
from sagittal.language.sinks import NoSinks

SHAPES = ("64x3x3", "128x8x4", "128x8x8")
LAYOUTS = ("uniform", "planned", "planned-mixed")


@dataclass(frozen=True)
class Shape:
    """Width of a head, key-value heads, and query heads to each."""

    width: int
    heads: int
    group: int

    @classmethod
    def of(cls, text: str) -> Shape:
        width, heads, group = map(int, text.split("x"))
        return cls(width, heads, group)

    @property
    def rope(self) -> Rope:
        return Rope(1 / 10_000 ** (torch.arange(0, self.width, 2) / self.width))


def moments(shape: Shape, seed: int) -> Moments:
    """Make up moments like a model's: few strong directions, channels of unlike weight, a mean."""
    draw = np.random.default_rng(seed)
    heads, width = shape.heads, shape.width
    turn = np.linalg.qr(draw.normal(size=(heads, width, width)))[0]
    power = np.exp(-np.arange(width) / (width / 6)) + 0.02
    covariance = np.einsum("hdr,r,her->hde", turn, power, turn)
    nothing = np.empty((0, heads, width), np.float32)
    return Moments(
        mean=draw.normal(size=(heads, width)),
        covariance=covariance,
        fisher=np.exp(draw.normal(size=(heads, width))),
        sample=np.empty((heads, 0, width), np.float32),
        sink_states=nothing,
        sink_gradients=nothing,
    )


def plan_of(layout: str, shape: Shape, bits: int, planned_bits: float, context: int) -> CachePlan:
    if layout == "uniform":
        return CachePlan.uniform(bits, bits, group=shape.width)
    calibration = Calibration(
        keys=(moments(shape, 1),),
        values=(moments(shape, 2),),
        sinks=NoSinks("made-up moments"),
        reads=None,
        tokens=context,
        length=context,
        text_sha256="",
        own=0,
        made_for={},
    )
    return fit_plan(calibration, planned_bits, context, mix_values=layout == "planned-mixed")


def states_of(shape: Shape, context: int) -> tuple[Tensor, Tensor]:
    """Draw keys after RoPE and values, ``(1, H, context, D)``, from the made-up moments."""
    draw = np.random.default_rng(3)
    found = []
    for seed in (1, 2):
        about = moments(shape, seed)
        root = np.linalg.cholesky(about.covariance)
        noise = draw.normal(size=(shape.heads, context, shape.width))
        found.append(torch.tensor(np.einsum("htr,hdr->htd", noise, root) + about.mean[:, None])[None].float())
    return shape.rope.turn(found[0], torch.arange(context)[None]), found[1]


def layer_of(plan: CachePlan, shape: Shape, keys: Tensor, values: Tensor) -> tuple[PagedStates, PagedStates]:
    layer = LowBitLayer(plan, rope=shape.rope)
    layer.update(keys, values)
    assert layer.states is not None
    return layer.states


def copies(
    states: tuple[PagedStates, PagedStates], count: int, device: str
) -> list[tuple[PagedStates, PagedStates]]:
    def copy(tensor: Tensor) -> Tensor:
        return tensor.to(device, copy=True)

    keys, values = states
    return [(keys.map(copy), values.map(copy)) for _ in range(count)]


def waited_for(call: Callable[[int], Any]) -> Callable[[int], Any]:
    def both(number: int) -> None:
        call(number)
        torch.cuda.synchronize()

    return both


class Ort:
    """ONNX Runtime's GroupQueryAttention on the CPU, with a cache of 8 or 4 bits."""

    def __init__(self, shape: Shape, context: int, bits: int, threads: int, layers: int) -> None:
        import onnxruntime
        from onnx import TensorProto, helper

        heads, width, rows = shape.heads, shape.width, shape.heads * shape.group
        held = width * bits // 8
        code = TensorProto.INT8 if bits == 8 else TensorProto.UINT8
        names = ["query", "key", "value", "past_key", "past_value", "seqlens_k", "total", "", ""]
        node = helper.make_node(
            "GroupQueryAttention",
            [*names, "", "", "", "k_scale", "v_scale"],
            ["out", "present_key", "present_value"],
            domain="com.microsoft",
            num_heads=rows,
            kv_num_heads=heads,
            kv_cache_bit_width=bits,
            k_quant_type="PER_CHANNEL",
            v_quant_type="PER_CHANNEL",
        )
        cache = [1, heads, context, held]
        inputs = [
            helper.make_tensor_value_info(name, kind, size)
            for name, kind, size in (
                ("query", TensorProto.FLOAT, [1, 1, rows * width]),
                ("key", TensorProto.FLOAT, [1, 1, heads * width]),
                ("value", TensorProto.FLOAT, [1, 1, heads * width]),
                ("past_key", code, cache),
                ("past_value", code, cache),
                ("seqlens_k", TensorProto.INT32, [1]),
                ("total", TensorProto.INT32, []),
                ("k_scale", TensorProto.FLOAT, [1, heads, 1, width]),
                ("v_scale", TensorProto.FLOAT, [1, heads, 1, width]),
            )
        ]
        outputs = [
            helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 1, rows * width]),
            helper.make_tensor_value_info("present_key", code, cache),
            helper.make_tensor_value_info("present_value", code, cache),
        ]
        graph = helper.make_graph([node], "attention", inputs, outputs)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        draw = np.random.default_rng(5)

        def value(array: Any) -> Any:
            return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))

        def normal(size: int) -> Any:
            return value(draw.normal(size=(1, 1, size)).astype(np.float32))

        def codes() -> Any:
            low, high, kind = (-127, 128, np.int8) if bits == 8 else (0, 256, np.uint8)
            return value(draw.integers(low, high, size=cache, dtype=kind))

        scale = value(np.full((1, heads, 1, width), 3.0 / (127 if bits == 8 else 7), np.float32))
        common = {
            "query": normal(rows * width),
            "key": normal(heads * width),
            "value": normal(heads * width),
            "seqlens_k": value(np.array([context - 1], np.int32)),
            "total": value(np.array(context, np.int32)),
            "k_scale": scale,
            "v_scale": scale,
        }
        self._bound = []
        for _ in range(layers):
            held_keys, held_values = codes(), codes()
            bound = self._session.io_binding()
            for name, given in {**common, "past_key": held_keys, "past_value": held_values}.items():
                bound.bind_ortvalue_input(name, given)
            bound.bind_output("out")
            bound.bind_ortvalue_output("present_key", held_keys)  # the same buffer: nothing is copied
            bound.bind_ortvalue_output("present_value", held_values)
            self._bound.append(bound)

    def __call__(self, number: int) -> None:
        self._session.run_with_iobinding(self._bound[number % len(self._bound)])


def competitors(shape: Shape, context: int, threads: int, layers: int) -> tuple[dict[str, Ort], str | None]:
    try:
        return {f"ort_int{bits}": Ort(shape, context, bits, threads, layers) for bits in (8, 4)}, None
    except Exception as error:  # not installed, or a version without a quantised cache: whatever it raises
        return {}, f"{type(error).__name__}: {error}".splitlines()[0]


def rows(arguments: argparse.Namespace, shape: Shape, device: str = "cpu") -> list[dict[str, Any]]:
    context, on_gpu = arguments.context, device == "cuda"
    keys, values = states_of(shape, context)
    plans = {
        layout: plan_of(layout, shape, arguments.bits, arguments.planned_bits, context)
        for layout in arguments.layouts.split(",")
    }
    packed = {layout: layer_of(plan, shape, keys, values) for layout, plan in plans.items()}
    size = {layout: sum(states.nbytes for states in held) for layout, held in packed.items()}
    spread = arguments.spread_mib * 2 ** (22 if on_gpu else 20)
    layers = max(2, math.ceil(spread / min(size.values())))
    held = {layout: copies(states, layers, device) for layout, states in packed.items()}
    keys, values = keys.to(device).bfloat16(), values.to(device).bfloat16()
    dense = [(keys.clone(), values.clone()) for _ in range(layers)]
    query = torch.randn(1, shape.heads * shape.group, 1, shape.width).to(device).bfloat16()
    grouped = query.reshape(1, shape.heads, shape.group, shape.width)
    scaling = shape.width**-0.5
    memory = Memory(1 << 31, 1 << 29, device) if on_gpu else Memory()
    kernel = TRITON if on_gpu else chosen(arguments.kernel)

    def ours(layout: str) -> Callable[[int], Any]:
        return lambda number: attend(query, *held[layout][number % layers], scaling=scaling, kernel=kernel)

    found = []
    for threads in [0] if on_gpu else map(int, arguments.threads.split(",")):
        ort: dict[str, Ort] = {}
        why: str | None = "it is measured on a CPU"
        if not on_gpu:
            torch.set_num_threads(threads)
            ort, why = competitors(shape, context, threads, layers)
        contestants: dict[str, Callable[[int], Any]] = {
            "memory": memory.read,
            "sdpa_rows": lambda number: scaled_dot_product_attention(grouped, *dense[number % layers]),
            "sdpa_grouped": lambda number: scaled_dot_product_attention(
                query, *dense[number % layers], enable_gqa=True
            ),
            **ort,
            **{layout: ours(layout) for layout in plans},
        }
        if on_gpu:
            contestants = {name: waited_for(call) for name, call in contestants.items()}
        pause = 0.002 if threads > 1 else 0.0
        with torch.inference_mode():
            each = interleaved(contestants, arguments.rounds, pause=pause)
        times, least = medians(each), fastest(each)
        bandwidth = memory.window / times["memory"]
        best = min(times["sdpa_rows"], times["sdpa_grouped"])
        for layout in plans:
            time = times[layout]
            floor = size[layout] / bandwidth
            numbers = 2 * context * shape.heads * shape.width
            found.append(
                {
                    "layout": layout,
                    "head_dim": shape.width,
                    "kv_heads": shape.heads,
                    "gqa": shape.group,
                    "context": context,
                    "threads": threads,
                    "kernel": kernel,
                    **({"device": torch.cuda.get_device_name()} if on_gpu else {}),
                    "effective_bits": round(8 * size[layout] / numbers, 3),
                    "ms": 1e3 * time,
                    "ns_per_head_and_token": 1e9 * time / context / shape.heads,
                    "gb_per_second_of_memory": bandwidth / 1e9,
                    **{f"{name}_ms": 1e3 * times[name] for name in ("sdpa_rows", "sdpa_grouped", *ort)},
                    "floor_ms": 1e3 * floor,
                    "ratio_to_sdpa_bf16": time / best,
                    "ratio_to_floor": time / floor,
                    "ratio_to_ort_int8": time / times["ort_int8"] if ort else None,
                    "ratio_to_ort_int4": time / times["ort_int4"] if ort else None,
                    "without_ort": why,
                    "fastest_ms": 1e3 * least[layout],
                    "fastest_ratio_to_sdpa_bf16": least[layout]
                    / min(least["sdpa_rows"], least["sdpa_grouped"]),
                    "fastest_ratio_to_floor": least[layout] * memory.window / size[layout] / least["memory"],
                    **{f"fastest_ratio_to_{name}": least[layout] / least[name] for name in ort},
                }
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--context", type=int, default=8192, help="tokens in the cache")
    parser.add_argument("--bits", type=int, default=2, help="of the uniform layout")
    parser.add_argument("--planned-bits", type=float, default=2.6, help="of the planned ones, all counted")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="head width x key-value heads x group")
    parser.add_argument("--layouts", default=",".join(LAYOUTS))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--spread-mib", type=float, default=48.0, help="data of a layout over all its copies")
    parser.add_argument("--kernel", help="of sagittal.language.attend; the fastest that runs here without")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {"machine": machine(), "rows": []}
    for text in arguments.shapes.split(","):
        shape = Shape.of(text)
        gpu = rows(arguments, shape, "cuda") if computes(TRITON, "cuda") else []
        for row in rows(arguments, shape) + gpu:
            found["rows"].append(row)
            print(
                "{layout:14} D={head_dim} G={gqa} threads={threads} {effective_bits} bits {ms:.3f} ms, "
                "{ratio_to_sdpa_bf16:.3f} of sdpa, {ratio_to_floor:.2f} of the floor".format(**row),
                f"ort int8 {row['ratio_to_ort_int8']} int4 {row['ratio_to_ort_int4']}; of the least times",
                f"{row['fastest_ratio_to_sdpa_bf16']:.3f} and {row['fastest_ratio_to_floor']:.2f}",
                flush=True,
            )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
