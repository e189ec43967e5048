# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs in a serving image: asks the parser of `vllm serve` what it refuses of some configurations.

A program of one file, which is given to the Python of the image's vLLM as text. It mirrors what
vllm.entrypoints.cli.main does up to the start of the server. Its argument is JSON: by name, the C(text) of a
configuration and the C(command) line, in which null stands for the path of the configuration. The last line that it
prints begins with ANSWER_MARK: C(results), by name C(ok), C(refused) or C(broken) with a text, or C(broken) for all.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from typing import Any

ANSWER_MARK = "gpufleet-answer:"
LONGEST_TEXT = 4000


def choose_platform() -> None:
    """Give vLLM a platform: without a GPU its CUDA build finds none, and cannot make the defaults of its parser."""
    from vllm import platforms

    if not platforms.current_platform.is_unspecified():
        return
    for module, name in (("cuda", "NonNvmlCudaPlatform"), ("cpu", "CpuPlatform")):
        with contextlib.suppress(Exception):
            platforms.current_platform = getattr(importlib.import_module("vllm.platforms." + module), name)()
            return


def parse(parser_class: Any, arguments: list[str]) -> dict[str, Any]:
    """Return what vLLM's command line says of the arguments."""
    from vllm.entrypoints.cli import serve

    sys.argv = ["vllm", *arguments]
    parser = parser_class(description="vLLM CLI")
    subparsers = parser.add_subparsers(required=False, dest="subparser")
    commands = {command.name: command for command in serve.cmd_init()}
    for command in commands.values():
        command.subparser_init(subparsers)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            commands["serve"].validate(parser.parse_args())
    except SystemExit as stop:
        text = (
            said.getvalue()
            if stop.code not in (None, 0)
            else "error: with this configuration vLLM ends without serving"
        )
        return {"refused": text[-LONGEST_TEXT:]}
    except Exception as error:
        ours = isinstance(error, (ValueError, TypeError, KeyError)) or type(error).__module__.startswith("yaml")
        return {"refused" if ours else "broken": f"{type(error).__name__}: {error}"[:LONGEST_TEXT]}
    return {"ok": True}


def missing_compiler(text: str) -> dict[str, str]:
    """Return the refusal of an image that lacks the compiler which FlashInfer's attention needs on Hopper, or nothing.

    Where FlashInfer looks for it: flashinfer/jit/cpp_ext.py, get_cuda_path.
    """
    asked = re.search(r"^attention-backend: *[\"']?FLASHINFER\b", text, re.MULTILINE)
    if not asked or os.environ.get("VLLM_HAS_FLASHINFER_CUBIN") != "1":
        return {}
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    if shutil.which("nvcc") or os.access(os.path.join(home, "bin", "nvcc"), os.X_OK):
        return {}
    told = "--attention-backend FLASHINFER compiles its kernels at the start, and the image has no nvcc in PATH or "
    return {"refused": told + os.path.join(home, "bin")}


def main(checks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the answer for every check."""
    try:
        choose_platform()
        try:
            from vllm.utils.argparse_utils import FlexibleArgumentParser
        except ImportError:
            from vllm.utils import FlexibleArgumentParser
        results = {}
        for name, check in checks.items():
            path = os.path.join(tempfile.mkdtemp(), "config.yaml")
            with open(path, "w", encoding="utf-8") as stream:
                stream.write(check["text"])
            arguments = [path if word is None else word for word in check["command"]]
            results[name] = missing_compiler(check["text"]) or parse(FlexibleArgumentParser, arguments)
        return {"results": results}
    except BaseException as error:
        return {"broken": f"{type(error).__name__}: {error}"[:LONGEST_TEXT]}


if __name__ == "__main__":
    sys.path[:] = [entry for entry in sys.path if entry]
    answer = main(json.loads(sys.argv[1]))
    sys.stdout.write("\n" + ANSWER_MARK + json.dumps(answer) + "\n")
    sys.stdout.flush()
    os._exit(0)
