# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes a tokenizer with as many visible words as Scout has tokens, so that decoding costs what real text costs.

python3 tests/gpu/text_tokenizer.py FOLDER

Dummy weights say any token. In a small tokenizer most of them are no visible text; the server then decodes each answer
again and again, and measures its own decoder instead of the GPUs.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

SIZE = 202048
SPECIAL = ("<|begin_of_text|>", "<|eot|>")
UNKNOWN = "<unk>"
SPACE = "\u2581"
METASPACE = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True}


def tokenizer(size: int) -> dict[str, Any]:
    """Return the document tokenizer.json: words of four letters, each a token."""
    words = (SPACE + "".join(letters) for letters in itertools.product("abcdefghijklmnopqrstuvwxyz", repeat=4))
    tokens = [*SPECIAL, UNKNOWN, *itertools.islice(words, size - len(SPECIAL) - 1)]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": token, **plain, "special": True} for i, token in enumerate(SPECIAL)],
        "normalizer": None,
        "pre_tokenizer": METASPACE,
        "post_processor": None,
        "decoder": METASPACE,
        "model": {"type": "WordLevel", "vocab": {token: i for i, token in enumerate(tokens)}, "unk_token": UNKNOWN},
    }


def main(folder: str) -> int:
    """Write it into that folder."""
    document = json.dumps(tokenizer(SIZE), ensure_ascii=False, separators=(",", ":"))
    Path(folder, "tokenizer.json").write_text(document, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
