# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The trades between throughput and latency that C(vllm_profile) offers, as data; every other variable beats them.

A new one is an entry here, and its name with a sentence in roles/vllm/meta/argument_specs.yml, of which a test reminds.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Profile:
    """What a profile asks of the planner.

    Attributes:
        sizes: tensor parallel sizes in ascending order; the largest that the host has GPUs for, or else the first.
        sizes_fp4: those for FP4 weights, which leave more room; None for the same.
        sequences: max-num-seqs, lowered to what the KV cache holds; None leaves it to vLLM.
        fill: take as much memory as is safe, and as many sequences as the KV cache then holds.
        image_tag: the image's tag where the user names none; empty for the collection's own choice.
        as_published: keep to the recipe where it measures rather than serves: prefix caching off, FlashInfer's FP8 MoE
            kernels on.
    """

    sizes: tuple[int, ...] = (1,)
    sizes_fp4: tuple[int, ...] | None = None
    sequences: int | None = None
    fill: bool = False
    image_tag: str = ""
    as_published: bool = False

    def sizes_for(self, precision: str) -> tuple[int, ...]:
        """Return the tensor parallel sizes for weights of that precision."""
        return self.sizes_fp4 if precision == "fp4" and self.sizes_fp4 else self.sizes


DEFAULT = "balanced"

PROFILES: dict[str, Profile] = {
    "recipe": Profile(image_tag="v0.12.0", as_published=True),
    "max_throughput": Profile(sizes=(2,), sizes_fp4=(1,), fill=True),
    "balanced": Profile(sizes=(2,), sequences=128),
    "min_latency": Profile(sizes=(4, 8), sequences=8),
}
