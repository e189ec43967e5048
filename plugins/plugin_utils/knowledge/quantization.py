# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""In which precision a model's weights are, and how a quantisation lays its scales."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

# Bits of one quantised weight, those in floating point with their scales.
BITS = {"fp8": 8.0, "fp4": 4.5, "mxfp4": 4.25, "4-bit": 4.0, "8-bit": 8.0}
# Bits of the scale that a group of integers shares, and of the scales of bitsandbytes, quantised themselves, a weight.
SCALE_BITS, DOUBLE_SCALE_BITS = 16, 0.127
# NVIDIA's name for FP8 in blocks, of which the side is fixed.
FP8_IN_BLOCKS, FP8_SIDE = "FP8_PB_WO", 128


Entries = list[tuple[str, Any]]


def precision_of(entries: Entries, dtype: str) -> str:
    """Return C(fp8), C(fp4) for NVFP4 alone, C(mxfp4), C(4-bit) or C(8-bit) for other integers, or the dtype."""
    words = " ".join(value.lower() for _key, value in entries if isinstance(value, str))
    weights = [_kind(value) for key, value in entries if key == "weights" and isinstance(value, Mapping)]
    options = dict(entries)
    if "nvfp4" in words or "fp4" in weights:
        return "fp4"
    if options.get("load_in_4bit") is True:
        return "4-bit"
    if "fp4" in words or "mxfp4" in weights:
        return "mxfp4"
    if "fp8" in words or "float8" in words or "fp8" in weights:
        return "fp8"
    bits = {str(options.get(name)) for name in ("bits", "w_bit", "nbits")}
    if bits & {"2", "3", "4"} or "4-bit" in weights or re.search(r"\b(int4|w4a\d+)", words):
        return "4-bit"
    if "8" in bits or options.get("load_in_8bit") is True or "8-bit" in weights or re.search(r"\b(int8|w8a\d+)", words):
        return "8-bit"
    return "fp32" if dtype.endswith("float32") else "bf16"


def bits_of(entries: Entries, precision: str, otherwise: float) -> float:
    """Return the bits of one weight of a precision, with its share of scales and zero points."""
    bits = BITS.get(precision, otherwise)
    if precision not in ("4-bit", "8-bit"):
        return bits
    options, size = dict(entries), group(entries)
    if not size:
        return bits + DOUBLE_SCALE_BITS * (options.get("load_in_4bit") is True)
    method = str(options.get("quant_method"))
    zero_points = method in ("gptq", "awq", "auto-round") or options.get("symmetric") is False
    return bits + (SCALE_BITS + bits * zero_points) / size


def entries_of(quantization: Mapping[str, Any]) -> Entries:
    """Return every key and value of a quantisation, nested ones too, that tells of the weights: not of the KV cache."""
    return list(_entries(quantization))


def _entries(quantization: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in quantization.items():
        if "kv_cache" in key or key in ("input_activations", "output_activations"):
            continue
        yield key, value
        if isinstance(value, Mapping):
            yield from _entries(value)


def _kind(weights: Mapping[str, Any]) -> str:
    """Return the precision in compressed-tensors' description of weights."""
    bits = weights.get("num_bits")
    if weights.get("type") == "float":
        return {4: "fp4" if weights.get("group_size") == 16 else "mxfp4", 8: "fp8"}.get(bits or 0, "")
    return f"{bits}-bit" if bits in (4, 8) else ""


def is_static(entries: Entries) -> bool:
    """Return whether FP8 weights are known to have one scale a tensor, and one that is fixed for its input."""
    options = dict(entries)
    if options.get("quant_algo"):
        return str(options["quant_algo"]).upper() == "FP8"
    if options.get("quant_method") == "fp8":
        return options.get("activation_scheme") == "static" and not options.get("weight_block_size")
    groups = [group for group in (options.get("config_groups") or {}).values() if isinstance(group, Mapping)]
    return bool(groups) and all(
        (group.get("weights") or {}).get("strategy") == "tensor"
        and (group.get("input_activations") or {}).get("strategy") == "tensor"
        and (group.get("input_activations") or {}).get("dynamic") is False
        for group in groups
    )


def fp8_block(entries: Entries) -> int:
    """Return the side of the blocks of weights that share a scale in FP8; 0 where whole tensors or channels do."""
    found = dict(entries)
    if str(found.get("quant_algo")).upper() == FP8_IN_BLOCKS:
        return FP8_SIDE
    block = found.get("weight_block_size")
    if not block and str(found.get("strategy")) == "block":
        block = found.get("block_structure")
    return int(max(block)) if isinstance(block, (list, tuple)) and block else 0


def group(entries: Entries) -> int:
    """Return how many weights beside each other share a scale, of weights of 4 or 8 bits in groups; 0 for no groups."""
    found = dict(entries)
    size = found.get("group_size") or found.get("q_group_size") or 0
    return size if isinstance(size, int) and size > 0 else 0


def spares(entries: Entries, layers: int, *words: str) -> bool:
    """Return whether a part of every layer is left unquantised, by the names of what is not converted.

    Args:
        entries: of the model's quantisation.
        layers: how many it has.
        words: of which the part's name has one.
    """
    named: set[str] = set()
    for key, value in entries:
        if key in ("ignore", "ignored_layers", "modules_to_not_convert", "exclude_modules") and value:
            named.update(str(entry) for entry in value)
    found = [name for name in named if any(word in name for word in words)]
    return any(not re.search(r"\.\d+\.", name) for name in found) or len(found) >= layers
