# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Extract what each vLLM release accepts, and what it says when it fails, from the release's own wheel.

    python3 tools/extract_parsers.py 0.12.0 0.33.0 --messages

For each release the wheel (250 to 500 MB) is downloaded from the package index into a temporary folder, its Python
sources are unpacked (no compiled library), and the wheel is deleted. Then, in a subprocess on those sources, vLLM's
own ``make_arg_parser`` builds the parser of ``vllm serve`` as on a CUDA machine, and its actions are written to
tests/unit/data/vllm_parsers/<version>.json. What cannot be imported without a GPU (compiled extensions, libraries
that the release wants and the environment lacks) is replaced by empty stand-ins, each named in the output. The
environment variables are the keys of the release's ``vllm/envs.py``.

With --messages, each pattern of tests/unit/data/vllm_messages.json is looked for in the texts of the sources, and
where it was found, and what the text reads like, is written back into that file.

The libraries that vLLM imports (PyTorch for CPU, transformers and others: 1 GB installed) come from the interpreter
named by --python, or are installed, at fixed versions, into --venv on first use. Only the standard library is needed
to start.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

try:
    from ansible_collections.gpufleet.vllm.tools.stand_ins import StandInFinder, StandInModule, stand_in
except ImportError:  # run as a script, outside a tree of collections
    from stand_ins import StandInFinder, StandInModule, stand_in  # type: ignore[import-not-found,no-redef]

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = REPOSITORY / "tests" / "unit" / "data"
SCHEMA_VERSION = 1

# The manylinux tag differs between releases; pip takes the wheel that matches one of these.
PLATFORMS = ("manylinux_2_24_x86_64", "manylinux_2_28_x86_64", "manylinux_2_31_x86_64", "manylinux_2_35_x86_64")

REQUIREMENTS = Path(__file__).resolve().parent / "extract_parsers.txt"
TORCH = "torch==2.13.0+cpu"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"  # PyPI has the CUDA build only, which does not load alone

PIP_DOWNLOAD = (
    *("-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir", "--only-binary=:all:"),
    *("--python-version", "3.11", "--implementation", "cp", "--abi", "abi3"),
)

PARSER_MODULES = ("vllm.entrypoints.openai.cli_args", "vllm.entrypoints.common.cli_args")
ANSWER_MARK = "parser-extraction:"
COMPILED_EXTENSIONS = ("vllm._C", "vllm._moe_C", "vllm._C_stable_libtorch")
MOST_STAND_INS = 80

# A platform plugin makes vLLM take a machine without a GPU for a CUDA machine: the serving image is for those.
PLATFORM_PLUGIN = "parser_extraction_platform"
PLATFORM_CLASS = "vllm.platforms.cuda.NonNvmlCudaPlatform"

# What an expression inside a message becomes in the text recorded for it.
SAMPLE = "1"


# --- Stand-ins, inside the subprocess -------------------------------------------------------------------------------


class _Missing(StandInFinder):
    """Finds stand-ins for the modules that are missing and named, and for what lies below them."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = set(names)

    def stands_in(self, fullname: str) -> bool:
        return fullname in self.names or any(fullname.startswith(name + ".") for name in self.names)


# --- Reading the parser, inside the subprocess ----------------------------------------------------------------------


def type_name(function: Any) -> str:
    """Name what converts an argument's text: int, float, str, json, json-or-str, int-suffix, int-suffix-or-auto."""
    if function is None:
        return "str"
    if function is json.loads:
        return "json"
    if isinstance(function, functools.partial):
        return type_name(function.func)
    name = getattr(function, "__name__", type(function).__name__)
    if name in ("_optional_type", "_parse_type"):
        inner = [cell.cell_contents for cell in function.__closure__ or () if callable(cell.cell_contents)]
        return type_name(inner[0]) if inner else name
    return {
        "parse_dataclass": "json",
        "union_dict_and_str": "json-or-str",
        "human_readable_int": "int-suffix",
        "human_readable_int_or_auto": "int-suffix-or-auto",
        "parse_reasoning_parser": "str",
        "<lambda>": "str",  # those there are change the letters' case only
    }.get(name, name)


def plain(value: Any) -> Any:
    """Return the value as JSON can hold it; an object of a configuration class becomes its class's name."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((plain(item) for item in value), key=str)
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in sorted(value.items(), key=lambda pair: str(pair[0]))}
    return {"object": type(value).__name__ if not isinstance(value, type) else value.__name__}


def field_names(cls: Any, prefix: str = "", depth: int = 3) -> list[str]:
    """Return the fields a configuration class takes from JSON, nested ones with a dot."""
    names: list[str] = []
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        names.append(prefix + field.name)
        hints = [field.type, *getattr(field.type, "__args__", ())]
        nested = next((hint for hint in hints if isinstance(hint, type) and dataclasses.is_dataclass(hint)), None)
        if nested is not None and depth > 1:
            names += field_names(nested, f"{prefix}{field.name}.", depth - 1)
    return sorted(names)


def dataclass_of(action: argparse.Action) -> Any:
    """Return the configuration class whose JSON the action takes, or None."""
    function: Any = action.type
    while function is not None:
        for value in [*(getattr(function, "__defaults__", None) or ()), function]:
            if isinstance(value, type) and dataclasses.is_dataclass(value):
                return value
        cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
        function = next((cell for cell in cells if callable(cell)), None)
    return None


def deprecation(text: str) -> str:
    """Return the sentence of a help text that calls the option deprecated, or an empty string."""
    sentences = re.split(r"(?<=[.!?])\s+", " ".join(text.split()))
    said = re.compile(r"^\W*deprecated\b|\b(is|are) deprecated\b", re.IGNORECASE)
    return next((sentence for sentence in sentences if said.search(sentence)), "")


def describe(action: argparse.Action, options: Sequence[str], marked: bool) -> dict[str, Any]:
    """Describe one action of the parser.

    options: every string the parser accepts for it, hidden ones too. marked: the code calls it deprecated.
    """
    name = canonical(action)
    optional = isinstance(action, argparse.BooleanOptionalAction)
    boolean = optional or (action.nargs == 0 and action.default in (True, False, None))
    negative = sorted(option for option in options if is_negative(action, option))
    said = deprecation(action.help or "")
    entry: dict[str, Any] = {
        "aliases": sorted(option for option in options if option != name and option not in negative),
        "boolean": boolean,
        "choices": None if action.choices is None else plain(list(action.choices)),
        "default": plain(action.default),
        "deprecated": marked or bool(said),
        "negative": negative,
        "type": "bool" if boolean else type_name(action.type),
    }
    if action.nargs not in (None, 0):
        entry["nargs"] = action.nargs
    if isinstance(action.metavar, (list, tuple)):
        entry["suggestions"] = plain(list(action.metavar))
    if said:
        entry["deprecation"] = said
    return entry


def canonical(action: argparse.Action) -> str:
    """Return the option's long name, which without its dashes is its key in a configuration file."""
    return next(option for option in action.option_strings if option.startswith("--"))


def is_negative(action: argparse.Action, option: str) -> bool:
    """Say whether the option sets a boolean to false."""
    if not isinstance(action, argparse.BooleanOptionalAction):
        return False
    declared = getattr(action, "negative_option_strings", None)
    return option in declared if declared is not None else option.startswith("--no-")


def inside(modules: Sequence[str], names: Sequence[str]) -> None:
    """Build the parser of the vLLM on the path and print it; say what is missing if it cannot be imported."""
    sys.argv = ["vllm", "serve", "--help"]  # vLLM leaves the help texts out unless help is asked for
    sys.meta_path.append(_Missing(modules))
    try:
        for name in names:
            module, _colon, attribute = name.partition(":")
            setattr(importlib.import_module(module), attribute, stand_in(attribute))
        parser = read_parser()
        used = {name for name, module in sys.modules.items() if isinstance(module, StandInModule)}
        stand_ins = sorted({name for name in used if name.rpartition(".")[0] not in used} | set(names))
        print(ANSWER_MARK + json.dumps({"parser": {**parser, "stand_ins": stand_ins}}))
    except ModuleNotFoundError as error:
        print(ANSWER_MARK + json.dumps({"missing": error.name}))
    except ImportError as error:
        match = re.match(r"cannot import name '(\w+)' from '([\w.]+)'", str(error))
        if match is None:
            raise
        print(ANSWER_MARK + json.dumps({"missing": f"{match[2]}:{match[1]}"}))


def read_parser() -> dict[str, Any]:
    """Return the arguments of vllm serve, and the fields of those that take JSON, as vLLM's own parser has them."""
    utilities = importlib.import_module("vllm.utils.argparse_utils")
    module = next(name for name in PARSER_MODULES if importlib.util.find_spec(name) is not None)
    parser = importlib.import_module(module).make_arg_parser(utilities.FlexibleArgumentParser())
    # Not action.option_strings: from 0.33 those leave out what is accepted but hidden from the help.
    accepted: dict[argparse.Action, list[str]] = {}
    for option, action in parser._option_string_actions.items():
        if action.dest != "help":
            accepted.setdefault(action, []).append(option)
    marked = parser._deprecated
    classes = {canonical(action): dataclass_of(action) for action in accepted}
    return {
        "arguments": {
            canonical(action): describe(action, options, action in marked) for action, options in accepted.items()
        },
        "fields": {name: field_names(cls) for name, cls in classes.items() if cls is not None},
    }


# --- Wheels and their sources ---------------------------------------------------------------------------------------


class ExtractionError(Exception):
    """A release whose parser could not be read, with the reason."""


def unpack(version: str, target: Path) -> None:
    """Put the Python sources of a release's wheel, and the wheel's name and SHA-256, into the folder."""
    with tempfile.TemporaryDirectory(prefix="vllm-wheel-") as folder:
        platforms = [option for name in PLATFORMS for option in ("--platform", name)]
        subprocess.run([sys.executable, *PIP_DOWNLOAD, *platforms, "--dest", folder, f"vllm=={version}"], check=True)
        wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            wanted = [name for name in archive.namelist() if name.endswith((".py", ".json", "METADATA"))]
            archive.extractall(target, wanted)
        with wheel.open("rb") as stream:
            digest = hashlib.sha256()
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
        (target / "wheel.json").write_text(json.dumps({"wheel": wheel.name, "sha256": digest.hexdigest()}))


def sources_of(version: str, folder: Path) -> Path:
    """Return where a release's sources are below the folder, unpacked now where they are not there yet."""
    sources = folder / version
    if not (sources / "wheel.json").exists():
        unpack(version, sources)
    return sources


def environment_variables(sources: Path) -> tuple[list[str], list[str]]:
    """Return the environment variables vLLM knows, and those of them it calls deprecated."""
    tree = ast.parse((sources / "vllm" / "envs.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if not isinstance(node, ast.AnnAssign) or not isinstance(node.value, ast.Dict):
            continue
        if isinstance(node.target, ast.Name) and node.target.id == "environment_variables":
            known: list[str] = []
            deprecated: list[str] = []
            for key, value in zip(node.value.keys, node.value.values):
                if not isinstance(key, ast.Constant):
                    continue
                known.append(str(key.value))
                if any("deprecated" in name.id for name in ast.walk(value) if isinstance(name, ast.Name)):
                    deprecated.append(str(key.value))
            return sorted(known), sorted(deprecated)
    raise ExtractionError(f"no environment_variables in {sources / 'vllm' / 'envs.py'}")


# --- The subprocess, tried again with one more stand-in until the parser can be built -------------------------------


def write_plugin(folder: Path) -> None:
    """Write the platform plugin's module and metadata into the folder."""
    metadata = folder / f"{PLATFORM_PLUGIN}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PLATFORM_PLUGIN}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        f"[vllm.platform_plugins]\ncuda_without_gpu = {PLATFORM_PLUGIN}:select\n"
    )
    (folder / f"{PLATFORM_PLUGIN}.py").write_text(f"def select():\n    return {PLATFORM_CLASS!r}\n")


def build_parser(sources: Path, interpreter: str) -> dict[str, Any]:
    """Return what read_parser says of the vLLM in the folder, and the stand-ins it took."""
    modules = list(COMPILED_EXTENSIONS)
    names: list[str] = []
    with tempfile.TemporaryDirectory(prefix="vllm-parser-") as folder:
        write_plugin(Path(folder))
        # Nothing of the caller's environment: a VLLM_ variable in it would change defaults.
        environment = {
            "HOME": folder,
            "PATH": os.defpath,
            "PYTHONPATH": os.pathsep.join([str(sources), folder]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
        }
        while len(modules) + len(names) < MOST_STAND_INS:
            process = subprocess.run(
                [interpreter, str(Path(__file__).resolve()), "--inside", json.dumps(modules), json.dumps(names)],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            answers = [line for line in process.stdout.splitlines() if line.startswith(ANSWER_MARK)]
            if not answers:
                raise ExtractionError(f"vLLM's parser could not be built:\n{process.stderr[-3000:]}")
            answer: dict[str, Any] = json.loads(answers[0][len(ANSWER_MARK) :])
            if "parser" in answer:
                parser: dict[str, Any] = answer["parser"]
                return parser
            (names if ":" in answer["missing"] else modules).append(answer["missing"])
    raise ExtractionError(f"more than {MOST_STAND_INS} stand-ins: {modules + names}")


def own_environment(folder: Path) -> str:
    """Return the interpreter of the virtual environment in the folder, made and filled if it is not there."""
    interpreter = folder / "bin" / "python"
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True)
        install = [str(interpreter), "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*install, "--requirement", str(REQUIREMENTS)], check=True)
        subprocess.run([*install, "--extra-index-url", TORCH_INDEX, TORCH], check=True)
        (folder / "complete").touch()
    return str(interpreter)


# --- Messages -------------------------------------------------------------------------------------------------------


def text_of(node: ast.AST) -> str | None:
    """Return the text an expression builds, with a sample for each value put into it; None if it builds no text."""
    if isinstance(node, ast.Constant):
        if not isinstance(node.value, str):
            return None
        return re.sub(r"%[.\d]*[sdrfgi]", SAMPLE, node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else SAMPLE for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Mod)):
        left, right = text_of(node.left), text_of(node.right) if isinstance(node.op, ast.Add) else ""
        return (
            None
            if left is None and right is None
            else (SAMPLE if left is None else left) + (SAMPLE if right is None else right)
        )
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        return re.sub(r"\{\w*\}", SAMPLE, text_of(node.func.value) or "") or None
    return None


def texts(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield each text a module builds outside its docstrings, with its line; a text inside another not again."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            continue
        text = text_of(child)
        if text is None:
            yield from texts(child)
        else:
            yield child.lineno, text.strip()  # type: ignore[attr-defined]


def find_messages(sources: Path, patterns: Sequence[str]) -> dict[str, list[dict[str, str]]]:
    """Return for each pattern where in the sources a text matches it, and that text."""
    compiled = {pattern: re.compile(pattern) for pattern in patterns}
    found: dict[str, list[dict[str, str]]] = {pattern: [] for pattern in patterns}
    for path in sorted((sources / "vllm").rglob("*.py")):
        if "third_party" in path.parts:
            continue
        for line, text in texts(ast.parse(path.read_text(encoding="utf-8"))):
            for pattern, expression in compiled.items():
                if expression.search(text):
                    found[pattern].append({"at": f"{path.relative_to(sources)}:{line}", "text": text[:400]})
    return found


# --- Output ---------------------------------------------------------------------------------------------------------


def by_line(value: Any, depth: int = 0, deep: int = 2) -> str:
    """Return JSON in which everything deeper than the given depth stands on one line, so that diffs can be read."""
    pad = " " * (depth + 1)
    if depth < deep and isinstance(value, dict) and value:
        items = [f"{pad}{json.dumps(key)}: {by_line(value[key], depth + 1, deep)}" for key in sorted(value)]
        return "{\n" + ",\n".join(items) + "\n" + " " * depth + "}"
    if depth < deep and isinstance(value, list) and value:
        return "[\n" + ",\n".join(pad + by_line(item, depth + 1, deep) for item in value) + "\n" + " " * depth + "]"
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def extract(version: str, sources: Path, interpreter: str) -> dict[str, Any]:
    """Return the document of one release."""
    known, deprecated = environment_variables(sources)
    return {
        "schema_version": SCHEMA_VERSION,
        "version": version,
        "method": "executed",
        **json.loads((sources / "wheel.json").read_text()),
        **build_parser(sources, interpreter),
        "environment": known,
        "environment_deprecated": deprecated,
    }


def main() -> int:
    """Extract the releases named on the command line; the exit status is 1 if one of them could not be read."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="+", help="vLLM releases, such as 0.12.0")
    parser.add_argument("--messages", action="store_true", help="also look for the patterns of vllm_messages.json")
    parser.add_argument("--no-parsers", action="store_true", help="leave the parsers' files as they are")
    parser.add_argument("--python", default="", help="an interpreter that has vLLM's libraries")
    parser.add_argument("--venv", type=Path, default=Path.home() / ".cache" / "gpufleet" / "parser-venv")
    parser.add_argument("--sources", type=Path, help="keep the unpacked sources here, and use those already there")
    parser.add_argument("--output", type=Path, default=DATA)
    options = parser.parse_args()
    interpreter = sys.executable
    if not options.no_parsers:
        interpreter = options.python or own_environment(options.venv)
    messages_file = options.output / "vllm_messages.json"
    messages: dict[str, Any] = json.loads(messages_file.read_text(encoding="utf-8")) if options.messages else {}
    failed = 0
    with tempfile.TemporaryDirectory(prefix="vllm-sources-") as scratch:
        for version in options.versions:
            sources = sources_of(version, options.sources or Path(scratch))
            try:
                if not options.no_parsers:
                    document = extract(version, sources, interpreter)
                    target = options.output / "vllm_parsers" / f"{version}.json"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_text(by_line(document) + "\n", encoding="utf-8")
                    print(
                        f"{version}: {len(document['arguments'])} arguments, {len(document['environment'])} variables"
                    )
                if options.messages:
                    found = find_messages(sources, [entry["pattern"] for entry in messages["messages"]])
                    messages["versions"] = sorted({*messages["versions"], version}, key=version_key)
                    for entry in messages["messages"]:
                        entry["found"][version] = found[entry["pattern"]]
                    messages_file.write_text(by_line(messages, deep=5) + "\n", encoding="utf-8")
                    print(f"{version}: {sum(1 for places in found.values() if places)} of {len(found)} messages")
            except ExtractionError as error:
                failed = 1
                print(f"{version}: {error}", file=sys.stderr)
    return failed


def version_key(version: str) -> list[int]:
    """Return what sorts releases in their order."""
    return [int(part) for part in version.split(".")]


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(json.loads(sys.argv[2]), json.loads(sys.argv[3]))
    else:
        sys.exit(main())
