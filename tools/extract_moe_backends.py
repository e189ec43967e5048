# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask each vLLM release's own code which MoE kernels it takes for Llama 4 Scout in FP8, by card and by setting.

    python3 tools/extract_moe_backends.py 0.12.0 0.26.0

The sources come from the release's wheel, as in extract_parsers.py. In a subprocess its selection code is executed:
``select_fp8_moe_backend`` with the checks of the kernels' own classes, or, before there was one, the constructor of
ModelOpt's method. Nothing but vLLM's ``fused_moe`` folder, ``quant_utils``, ``flashinfer_utils``, ``modelopt`` and
``envs.py`` is loaded; every other module is an empty stand-in that claims to have what it is asked for, so the answer
is that of an image with FlashInfer, DeepGEMM and all. The platform is a stand-in with the card's compute capability.
The layer is Scout's: static scales, one a tensor, 16 experts, one for each token, Llama 4's router, bfloat16.
The result is tests/unit/data/vllm_moe_backends.json, with the wheel's name and SHA-256. Only the standard library is
needed.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.machinery
import json
import os
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from extract_parsers import (  # type: ignore[import-not-found]
    ExtractionError,
    by_line,
    sources_of,
    version_key,
)

try:
    from ansible_collections.gpufleet.vllm.tools.stand_ins import StandInFinder, StandInModule
except ImportError:  # run as a script, outside a tree of collections
    from stand_ins import StandInFinder, StandInModule  # type: ignore[import-not-found,no-redef]

OUTPUT = Path(__file__).resolve().parent.parent / "tests" / "unit" / "data" / "vllm_moe_backends.json"
SCHEMA_VERSION = 1
CAPABILITIES = ("9.0", "10.0", "10.3", "12.0")
VARIABLE = "VLLM_USE_FLASHINFER_MOE_FP8"
# What is set, as environment and moe-backend, by the name that the result has.
SETTINGS: dict[str, tuple[dict[str, str], str]] = {
    "nothing": ({}, "auto"),
    f"{VARIABLE}=0": ({VARIABLE: "0"}, "auto"),
    f"{VARIABLE}=1": ({VARIABLE: "1"}, "auto"),
    "moe-backend: triton": ({}, "triton"),
    "moe-backend: flashinfer_trtllm": ({}, "flashinfer_trtllm"),
    "moe-backend: flashinfer_cutlass": ({}, "flashinfer_cutlass"),
}
MARK = "moe-backend:"
OURS = ("extract_parsers", "stand_ins")
FUSED_MOE = "vllm.model_executor.layers.fused_moe"
QUANTIZATION = "vllm.model_executor.layers.quantization"
# Loaded from the wheel, with all below them; the first is a folder of which __init__ is not executed.
REAL = (
    f"{FUSED_MOE}.",
    f"{QUANTIZATION}.modelopt",
    f"{QUANTIZATION}.utils.quant_utils",
    f"{QUANTIZATION}.utils.flashinfer_utils",
    f"{QUANTIZATION}.utils.humming.priority",
    "vllm.envs",
)
# Of the folder, and not loaded: what carries tokens between GPUs, and what has every model behind it.
NOT_REAL = tuple(
    f"{FUSED_MOE}.{name}"
    for name in ("layer", "fused_moe_method_base", "all2all_utils", "prepare_finalize", "routed_experts")
)


# --- Stand-ins, inside the subprocess -------------------------------------------------------------------------------


class _Module(StandInModule):
    """A stand-in of which what is real can be imported."""

    def __getattr__(self, name: str) -> Any:
        whole = "" if name.startswith("__") else f"{self.__name__}.{name}"
        if is_real(whole) and importlib.machinery.PathFinder.find_spec(whole, self.__path__):
            return importlib.import_module(whole)
        return super().__getattr__(name)


def is_real(name: str) -> bool:
    """Return whether a module is loaded from the wheel."""
    return name.startswith(REAL) and not name.startswith(NOT_REAL)


class _Finder(StandInFinder):
    """Finds stand-ins for all modules but the standard library's, ours, and those of the wheel that are real."""

    module = _Module

    def __init__(self, sources: Path) -> None:
        self.sources = sources

    def stands_in(self, fullname: str) -> bool:
        if fullname.partition(".")[0] in sys.stdlib_module_names or fullname in OURS:
            return False
        return not is_real(fullname) or self.sources.joinpath(*fullname.split(".")).is_dir()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        spec = super().find_spec(fullname, path, target)
        if spec is not None:
            spec.submodule_search_locations = [str(self.sources.joinpath(*fullname.split(".")))]
        return spec


class _Platform:
    """A CUDA machine of one compute capability; what else it is asked, it denies."""

    device_name = "a card"

    def __init__(self, capability: str) -> None:
        self.number = int(capability.replace(".", ""))

    def is_cuda(self) -> bool:
        return True

    is_cuda_alike = is_cuda

    def is_device_capability(self, capability: int) -> bool:
        return self.number == _number(capability)

    def is_device_capability_family(self, capability: int) -> bool:
        return self.number // 10 == _number(capability) // 10

    def has_device_capability(self, capability: int) -> bool:
        return self.number >= _number(capability)

    def get_device_capability(self) -> Any:
        return _Facts(to_int=lambda: self.number)

    def supports_fp8(self) -> bool:
        return self.number >= 89

    def fp8_dtype(self) -> Any:
        return importlib.import_module("torch").float8_e4m3fn

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: False


def _number(capability: Any) -> int:
    return int(capability[0] * 10 + capability[1]) if isinstance(capability, tuple) else int(capability)


class _Denied(int):
    """False, or a function that returns it."""

    def __call__(self, *args: Any, **kwargs: Any) -> bool:
        return False


class _Facts:
    """What a layer is; what is not told of it is False, and noted."""

    asked: ClassVar[set[str]] = set()

    def __init__(self, **facts: Any) -> None:
        self.__dict__.update(facts)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        _Facts.asked.add(name)
        return _Denied()


# --- Asking, inside the subprocess ----------------------------------------------------------------------------------


def scout(moe_backend: str) -> _Facts:
    """Return Scout's layer at TP 1, as the selection is told of it."""
    config = importlib.import_module(f"{FUSED_MOE}.config")
    try:
        silu = importlib.import_module(f"{FUSED_MOE}.activation").MoEActivation.SILU
    except ModuleNotFoundError:
        silu = "silu"
    bfloat16 = importlib.import_module("torch").bfloat16
    return _Facts(
        activation=silu,
        is_act_and_mul=True,
        routing_method=config.RoutingMethodType.Llama4,
        router_logits_dtype=bfloat16,
        in_dtype=bfloat16,
        hidden_dim=5120,
        intermediate_size_per_partition=8192,
        num_experts=16,
        num_local_experts=16,
        experts_per_token=1,
        moe_backend=moe_backend,
        max_num_tokens=8192,
        swiglu_alpha=None,
        swiglu_beta=None,
        swiglu_limit=None,
        moe_parallel_config=_Facts(tp_size=1, dp_size=1, ep_size=1, pcp_size=1),
    )


def select(moe_backend: str) -> str:
    """Return the backend that this release's code selects."""
    try:
        oracle = importlib.import_module(f"{FUSED_MOE}.oracle.fp8")
    except ModuleNotFoundError:
        return _of_method()
    code = oracle.select_fp8_moe_backend.__code__
    if "config" not in code.co_varnames[: code.co_argcount]:
        found = oracle.select_fp8_moe_backend(block_quant=False, tp_size=1, with_lora_support=False)
        return str(found.name)
    keys = importlib.import_module(f"{QUANTIZATION}.utils.quant_utils")
    static = keys.kFp8StaticTensorSym
    found, _kernel = oracle.select_fp8_moe_backend(config=scout(moe_backend), weight_key=static, activation_key=static)
    return str(found.name)


def _of_method() -> str:
    """Return what ModelOpt's method has chosen when it is made: no FlashInfer backend is vLLM's Triton kernel."""
    method = importlib.import_module(f"{QUANTIZATION}.modelopt").ModelOptFp8MoEMethod
    made = method(_Facts(), _Facts(moe_config=_Facts(is_act_and_mul=True)))
    chosen = made.flashinfer_moe_backend
    names = {"TENSORRT_LLM": "FLASHINFER_TRTLLM", "CUTLASS": "FLASHINFER_CUTLASS"}
    return "TRITON" if chosen is None else names.get(chosen.name, str(chosen.name))


def inside(sources: str, capability: str, moe_backend: str) -> None:
    """Print the backend, or why there is none."""
    sys.path.insert(0, sources)
    sys.meta_path.insert(0, _Finder(Path(sources)))
    importlib.import_module("vllm.envs")
    importlib.import_module("vllm.platforms").current_platform = _Platform(capability)  # type: ignore[attr-defined]
    # AMD's kernels are denied.
    importlib.import_module("vllm._aiter_ops").rocm_aiter_ops = _Facts()  # type: ignore[attr-defined]
    with contextlib.suppress(ModuleNotFoundError):
        priority = importlib.import_module(f"{QUANTIZATION}.utils.humming.priority")
        importlib.import_module(f"{QUANTIZATION}.utils.humming").prioritize_humming = (  # type: ignore[attr-defined]
            priority.prioritize_humming
        )
    try:
        answer = {"backend": select(moe_backend)}
    except (ValueError, NotImplementedError) as error:
        answer = {"refused": str(error) or type(error).__name__}
    print(MARK + json.dumps({**answer, "assumed": sorted(_Facts.asked)}))


# --- The table ------------------------------------------------------------------------------------------------------


def ask(sources: Path, capability: str, environment: Mapping[str, str], moe_backend: str) -> dict[str, Any]:
    """Return the answer of a release's code for one card and one setting."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    command = [sys.executable, __file__, "--inside", str(sources), capability, moe_backend]
    done = subprocess.run(command, env={**ours, **environment}, capture_output=True, text=True, check=False)
    answers = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not answers:
        raise ExtractionError(done.stderr[-2000:])
    answer: dict[str, Any] = json.loads(answers[0][len(MARK) :])
    return answer


def read_release(sources: Path) -> dict[str, Any]:
    """Return the part of the table for one release: for each card and setting the backend, or the refusal."""
    has_option = "moe_backend" in (sources / "vllm" / "engine" / "arg_utils.py").read_text(encoding="utf-8")
    has_variable = f'"{VARIABLE}"' in (sources / "vllm" / "envs.py").read_text(encoding="utf-8")
    selected: dict[str, dict[str, str]] = {}
    assumed: set[str] = set()
    for capability in CAPABILITIES:
        answers = selected.setdefault(capability, {})
        for setting, (environment, moe_backend) in SETTINGS.items():
            if (environment and not has_variable) or (moe_backend != "auto" and not has_option):
                continue
            answer = ask(sources, capability, environment, moe_backend)
            assumed.update(answer["assumed"])
            answers[setting] = answer.get("backend") or f"refused: {answer['refused']}"
    about = json.loads((sources / "wheel.json").read_text(encoding="utf-8"))
    return {**about, "selected": selected, "assumed_false": sorted(assumed)}


def main() -> int:
    """Ask the releases named on the command line; the exit status is 1 if one of them could not be asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="+", help="vLLM releases, such as 0.12.0")
    parser.add_argument("--sources", type=Path, help="keep the unpacked sources here, and use those already there")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    table: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "releases": {}}
    if options.output.exists():
        table = json.loads(options.output.read_text(encoding="utf-8"))
    failed = 0
    with tempfile.TemporaryDirectory(prefix="vllm-sources-") as scratch:
        for version in options.versions:
            sources = sources_of(version, options.sources or Path(scratch))
            try:
                table["releases"][version] = read_release(sources)
                print(version, json.dumps(table["releases"][version]["selected"]))
            except ExtractionError as error:
                failed = 1
                print(f"{version}: {error}", file=sys.stderr)
    table["releases"] = dict(sorted(table["releases"].items(), key=lambda entry: version_key(entry[0])))
    options.output.write_text(by_line(table, deep=5) + "\n", encoding="utf-8")
    return failed


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(*sys.argv[2:5])
    else:
        sys.exit(main())
