# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Extract the errors that a server may end with while it starts, from the sources of vLLM and its libraries.

    python3 tools/extract_errors.py 0.12.0 0.33.0
    PYTHONPATH=.cache/collections .venv/bin/python tools/extract_errors.py --count

For each release of vLLM the Python sources are unpacked as tools/extract_parsers.py does. Then the text of every
``raise`` and every ``assert`` is read in the files that run before a server answers: what serves requests, other
platforms than CUDA and CPU, benchmarks and tests are left out by NOT_AT_START. With --libraries, a folder that holds
an unpacked wheel in each of its folders, the libraries named in LIBRARIES are read too. The list is kept in
tests/unit/data/start_errors.jsonl.gz, one text in a line: the exception, the text, where it stands, in which releases.

With --count nothing is extracted: each text of the list goes through the diagnosis as vLLM would print it, and the
output says how many get a name and how many do not. --sample prints that many of the named ones, to be read by hand.
"""

from __future__ import annotations

import argparse
import ast
import collections
import gzip
import json
import random
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

try:
    from ansible_collections.gpufleet.vllm.tools import extract_parsers
except ImportError:  # run as a script, outside a tree of collections
    import extract_parsers  # type: ignore[import-not-found,no-redef]

LIST = extract_parsers.DATA / "start_errors.jsonl.gz"
LONGEST_TEXT = 240
LEAST_TEXT = 12

# Folders and files whose errors no start can raise, and what is for devices that this collection does not serve.
NOT_AT_START = re.compile(
    r"third_party|/tests?/|benchmark|/assets/|/profiler/|collect_env|/examples?/|/tool_?parsers?|/reasoning"
    r"|/entrypoints/(?:pooling|anthropic|mcp|sagemaker|score|llm\.py|offline|chat_utils|scale_out|grpc)"
    r"|/entrypoints/openai/(?:serving|protocol|chat_completion|completion|responses|speech|realtime|parser|run_batch|"
    r"translations|generate|engine/serving|engine/protocol)"
    r"|/entrypoints/(?:renderer|speech|serve|cli/(?:benchmark|collect|run_batch|openai))"
    r"|/sampling_params|/pooling_params|/logits_process|/multimodal/(?:parse|inputs|image|video|audio|media|utils)"
    r"|/inputs/|/renderers/|/tokenizers/|/beam_search|/outputs\.py|/ray/|/ray_"
    r"|rocm|/xpu|_xpu|/tpu|_tpu|/hpu|neuron|aiter|/mps"
    r"|/v1/engine/(?:processor|input_processor|output|detokenizer|parallel_sampling|logprobs)"
    r"|/model_executor/models/(?:interfaces|registry_test)|/lora/(?:request|resolver)"
    r"|vllm_flash_attn/cute/.*bwd|/launchers/run_batch|/openai/decisions|/v1/structured_output"
    r"|/weight_transfer|/elastic_ep|/kv_transfer|/ec_transfer|/kv_offload"
)
# What a start calls of the libraries that vLLM is built on.
LIBRARIES = {
    "huggingface_hub": r"huggingface_hub/(?:file_download|_snapshot_download|utils/_(?:validators|http|errors|auth|"
    r"cache_manager|fixes)|errors|constants|_local_folder)",
    "transformers": r"transformers/(?:configuration_utils|modeling_utils|tokenization_(?!.*test)|utils/hub|"
    r"dynamic_module_utils|models/auto/|processing_utils|image_processing_base)",
    "flashinfer": r"flashinfer/(?:jit/(?:core|cpp_ext|cubin_loader|env|utils)\.py|compilation_context|artifacts|"
    r"comm/cuda_ipc)",
    "torch": r"torch/(?:utils/(?:cpp_extension|_triton)|cuda/__init__|_inductor/(?:cpp_builder|codecache|"
    r"async_compile|exc|cpu_vec_isa|compile_worker)|_dynamo/(?:exc|convert_frame|aot_compile)|distributed/"
    r"(?:distributed_c10d|rendezvous|device_mesh)|serialization|_library/custom_ops)",
    "compressed_tensors": r"compressed_tensors/",
    "mistral_common": r"mistral_common/tokens/tokenizers/",
    "lm_eval": r"lm_eval/(?:evaluator|models/(?:api_models|openai_completions|huggingface)|tasks/__init__|tasks/manager"
    r"|api/(?:task|registry|model)|__main__|_cli|utils|config|loaders)",
}


def raised(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the exception and the text of each error that a module raises with a text of its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            name = node.exc.func.attr if isinstance(node.exc.func, ast.Attribute) else getattr(node.exc.func, "id", "")
            text = extract_parsers.text_of(node.exc.args[0])
        elif isinstance(node, ast.Assert) and node.msg is not None:
            name, text = "AssertionError", extract_parsers.text_of(node.msg)
        else:
            continue
        text = re.sub(r"\s*\n\s*", "\n", (text or "").strip())
        if name[:1].isupper() and len(text) >= LEAST_TEXT:
            yield node.lineno, name, text[:LONGEST_TEXT]


def errors_below(folder: Path, wanted: str) -> Iterator[tuple[str, str, str]]:
    """Yield the exception, the text and the file of each error in the files below a folder that can fail a start."""
    for path in sorted(folder.rglob("*.py")):
        name = str(path.relative_to(folder))
        if not re.match(wanted, name) or NOT_AT_START.search(f"/{name}"):
            continue
        for _line, exception, text in raised(ast.parse(path.read_text(encoding="utf-8"))):
            yield exception, text, name


def extract(found: dict[tuple[str, str], tuple[str, list[str]]], folder: Path, wanted: str, release: str) -> int:
    """Add the errors of one release to those found already, and return how many it has."""
    count = 0
    for exception, text, name in errors_below(folder, wanted):
        _name, releases = found.setdefault((exception, text), (name, []))
        if release not in releases:
            releases.append(release)
            count += 1
    return count


def as_logged(exception: str, text: str, file: str) -> list[str]:
    """Return what a server prints when its engine ends with this error."""
    head = "(EngineCore pid=773) ERROR 11-22 08:15:43 [core.py:1330] "
    return [
        f"{head}EngineCore failed to start.",
        f"{head}Traceback (most recent call last):",
        f'{head}  File "/usr/local/lib/python3.12/dist-packages/{file}", line 7, in start',
        f"{head}    raise {exception}(",
        *(head + line for line in f"{exception}: {text}".splitlines()),
        "(APIServer pid=478) Traceback (most recent call last):",
        "(APIServer pid=478) RuntimeError: Engine core initialization failed. See root cause above. Failed core"
        " proc(s): {'EngineCore_DP0': 1}",
    ]


def read_list() -> list[tuple[str, str, str, list[str]]]:
    """Return the kept list: exception, text, file and releases."""
    return [tuple(json.loads(line)) for line in gzip.decompress(LIST.read_bytes()).decode().splitlines()]


def count(sample: int, seed: int) -> None:
    """Print how many texts of the list the diagnosis names, in each release, and a sample of those."""
    from ansible_collections.gpufleet.vllm.plugins.module_utils.health.causes import PLACES
    from ansible_collections.gpufleet.vllm.plugins.module_utils.health.diagnosis import diagnose

    by_place = {cause.name for _place, cause in PLACES}
    named: list[tuple[str, str, str]] = []
    all_of, named_of, place_of = (collections.Counter[str]() for _count in range(3))
    for exception, text, file, releases in read_list():
        error = diagnose(as_logged(exception, text, file), exit_code=1)
        all_of.update(releases)
        if error.name != "unknown-failure":
            named.append((error.name, exception, text))
            named_of.update(releases)
            place_of.update(releases if error.name in by_place else ())
    for release in sorted(all_of):
        by_text = named_of[release] - place_of[release]
        print(f"{release}: {all_of[release]} texts, {by_text} named by their text, {place_of[release]} by their place")
    for name, number in collections.Counter(name for name, _exception, _text in named).most_common():
        print(f"{number:5} {name}")
    chosen = random.Random(seed).sample(named, min(sample, len(named)))  # noqa: S311  a choice, no secret
    for name, exception, text in chosen:
        print(f"--- {name}\n{exception}: {text}")


def main() -> int:
    """Extract from what the command line names, or count what the list holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", help="vLLM releases, such as 0.12.0")
    parser.add_argument("--sources", type=Path, help="keep the unpacked sources here, and use those already there")
    parser.add_argument("--libraries", type=Path, help="a folder with the unpacked wheels of libraries")
    parser.add_argument("--count", action="store_true", help="say how many texts of the list get a name")
    parser.add_argument("--sample", type=int, default=0, help="print so many of the named texts")
    parser.add_argument("--seed", type=int, default=19)
    options = parser.parse_args()
    if options.count or options.sample:
        count(options.sample, options.seed)
        return 0
    found: dict[tuple[str, str], tuple[str, list[str]]] = {}
    with tempfile.TemporaryDirectory(prefix="vllm-sources-") as scratch:
        for version in options.versions:
            sources = extract_parsers.sources_of(version, options.sources or Path(scratch))
            print(f"{version}: {extract(found, sources, 'vllm/', f'vllm {version}')} texts", file=sys.stderr)
    for folder in sorted(options.libraries.iterdir()) if options.libraries else ():
        package, version = folder.name.split("-")[:2]
        wanted = LIBRARIES.get(package.replace("flashinfer_python", "flashinfer"))
        if wanted:
            release = f"{package} {version}"
            print(f"{release}: {extract(found, folder, wanted, release)} texts", file=sys.stderr)
    lines = sorted(
        json.dumps([exception, text, name, releases], ensure_ascii=False)
        for (exception, text), (name, releases) in found.items()
    )
    # Without a time in it, the same list makes the same file.
    LIST.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0))
    return 0


if __name__ == "__main__":
    sys.exit(main())
