# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a server wants of the hub, what its cache lacks, and how a download is told (tests/engine has downloads)."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.lock import host_lock
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.progress import Progress
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.hub_download import PROGRESS_MARK
from ansible_collections.gpufleet.vllm.plugins.module_utils.models import cached, download, refusals
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.download import Watch
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.surroundings import Surroundings
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.wants import CONFIG, GGUF, TOKENIZER, Want, wants_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, [Want("o/m")]),
        ({"load-format": "dummy"}, [Want("o/m", weights=False, load_format="dummy")]),
        ({"revision": "v2"}, [Want("o/m", "v2")]),
        ({"tokenizer": "o/t"}, [Want("o/m", needs=(CONFIG,)), Want("o/t", weights=False, needs=(TOKENIZER,))]),
        ({"tokenizer": "/models/t"}, [Want("o/m", needs=(CONFIG,))]),
        ({"tokenizer": None, "load-format": "", "revision": ""}, [Want("o/m")]),
        ({"skip-tokenizer-init": True}, [Want("o/m", needs=(CONFIG,))]),
        (
            {"tokenizer-revision": "v3"},
            [Want("o/m", needs=(CONFIG,)), Want("o/m", "v3", weights=False, needs=(TOKENIZER,))],
        ),
        (
            {"tokenizer": "o/t", "hf-config-path": "o/t"},
            [Want("o/m", needs=()), Want("o/t", weights=False, needs=(TOKENIZER, CONFIG))],
        ),
        ({"speculative-config": {"model": "o/d", "method": "eagle3"}}, [Want("o/m"), Want("o/d", needs=(CONFIG,))]),
        ({"speculative-config": {"model": "o/m", "method": "mtp"}}, [Want("o/m")]),
        (
            {"speculative-config": {"model": "o/d"}, "load-format": "pt", "ignore-patterns": ["x*"]},
            [
                Want("o/m", load_format="pt", ignore=("x*",)),
                Want("o/d", load_format="pt", ignore=("x*",), needs=(CONFIG,)),
            ],
        ),
        ({"speculative-config": '{"method": "ngram"}'}, [Want("o/m")]),
        ({"ignore-patterns": "x*"}, [Want("o/m", ignore=("x*",))]),
    ],
)
def test_what_a_server_wants(config: dict[str, Any], expected: list[Want]) -> None:
    assert wants_of("o/m", config) == expected


def test_a_quantization_behind_the_name_is_no_part_of_it() -> None:
    assert wants_of("o/m-GGUF:Q4_K_M", {}) == [Want("o/m-GGUF", weights=False, needs=(GGUF,))]


@pytest.mark.parametrize(
    ("config", "environment", "variable"),
    [({"download-dir": "/data"}, {}, "vllm_extra_config"), ({}, {"VLLM_USE_MODELSCOPE": "True"}, "vllm_environment")],
)
def test_what_is_left_to_the_server(config: dict[str, Any], environment: dict[str, str], variable: str) -> None:
    cache = Surroundings("image", "/hf").cache
    assert variable in cached.left_to_the_server(config, environment, cache)
    assert not cached.left_to_the_server({}, {}, cache)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with a model that something else than the module has fetched; returns the snapshot's folder."""
    base = tmp_path / "hub" / "models--o--m"
    snapshot = base / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (base / "refs").mkdir()
    (base / "refs" / "main").write_text(COMMIT)
    header = json.dumps({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    (snapshot / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"1234")
    (snapshot / "config.json").write_text('{"model_type": "llama"}')
    (snapshot / "tokenizer.json").write_text("{}")
    return snapshot


def test_a_whole_model_lacks_nothing_whoever_fetched_it(cache: Path, tmp_path: Path) -> None:
    for around in (Surroundings("image", str(tmp_path)), Surroundings("image", str(tmp_path), offline=True)):
        assert cached.lacks(Want("o/m"), around) == ""
        assert cached.lacks(Want("o/m", COMMIT), around) == ""
        assert cached.lacks(Want("o/m", "v2"), around) == "it is not in the cache"
    (cache / "tokenizer.json").unlink()
    for around in (Surroundings("image", str(tmp_path)), Surroundings("image", str(tmp_path), offline=True)):
        assert "tokenizer" in cached.lacks(Want("o/m"), around)
        assert cached.lacks(Want("o/m", needs=(CONFIG,)), around) == ""  # as of a draft


def renamed(snapshot: Path, name: str) -> None:
    (snapshot / "model.safetensors").rename(snapshot / name)


@pytest.mark.parametrize("load_format", ["mistral", "auto"])
def test_offline_mistrals_own_files_are_enough(cache: Path, tmp_path: Path, load_format: str) -> None:
    """They were fetched with the index of the others, which vLLM does not take."""
    around = Surroundings("image", str(tmp_path), offline=True)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (cache / "model.safetensors.index.json").write_text(json.dumps(index))
    renamed(cache, "consolidated.safetensors")
    assert cached.lacks(Want("o/m", load_format=load_format), around) == ""
    lack = cached.lacks(Want("o/m", load_format="hf"), around)
    assert lack.startswith("model-00001-of-00002.safetensors, model-00002-of-00002.safetensors are not there")
    (cache / "consolidated.safetensors").write_bytes(b"cut")
    assert cached.lacks(Want("o/m", load_format=load_format), around).startswith("consolidated.safetensors is not")


@pytest.mark.parametrize(("load_format", "name"), [("pt", "model.pt"), ("npcache", "a.bin"), ("auto", "a.bin")])
def test_offline_files_of_the_format_are_enough(cache: Path, tmp_path: Path, load_format: str, name: str) -> None:
    around, want = Surroundings("image", str(tmp_path), offline=True), Want("o/m", load_format=load_format)
    renamed(cache, "model.other")
    assert cached.lacks(want, around).startswith(f"it has no weights for load-format {load_format} (")
    (cache / "model.other").rename(cache / name)
    assert cached.lacks(want, around) == ""
    if name == "a.bin":
        (cache / "pytorch_model.bin.index.json").write_text('{"weight_map": {"x": "a.bin", "y": "b.bin"}}')
        assert cached.lacks(want, around) == "b.bin is not there or cut short"


def test_offline_what_was_copied_needs_no_record(cache: Path, tmp_path: Path) -> None:
    """The user did what the message says: the folder of the repository is there, the record of the download is not."""
    around = Surroundings("image", str(tmp_path), offline=True)
    for config in (
        {"load-format": "dummy"},
        {"tokenizer": "o/t"},
        {"speculative-config": {"model": "o/t"}, "load-format": "dummy"},
    ):
        wants = wants_of("o/m", config)
        tokenizer = tmp_path / "hub" / "models--o--t"
        if len(wants) > 1:
            with pytest.raises(GpufleetError, match="o/t: it is not in the cache"):
                download.ensure_weights(nobody, wants, around, check=False, progress=Progress(None))
            shutil.copytree(tmp_path / "hub" / "models--o--m", tokenizer)
            (tokenizer / "snapshots" / COMMIT / "model.safetensors").unlink()
        result = download.ensure_weights(nobody, wants, around, check=False, progress=Progress(None))
        assert (result["changed"], [model["missing_files"] for model in result["models"]]) == (False, [[]] * len(wants))
        shutil.rmtree(tokenizer, ignore_errors=True)


def nobody() -> Any:
    raise AssertionError("the engine was asked")


def test_offline_a_copy_without_its_blobs_is_told(cache: Path, tmp_path: Path) -> None:
    (cache / "config.json").unlink()
    (cache / "config.json").symlink_to("../../blobs/0123")
    lack = cached.lacks(Want("o/m"), Surroundings("image", str(tmp_path), offline=True))
    assert lack == (
        "its configuration (config.json or params.json) is not there"
        " (config.json is in the snapshot as a link to what is not in blobs)"
    )


def test_a_gguf_model_needs_its_file_only(cache: Path, tmp_path: Path) -> None:
    around = Surroundings("image", str(tmp_path), offline=True)
    (want,) = wants_of("o/m:Q4_K_M", {})
    assert cached.lacks(want, around) == "its GGUF file (*.gguf) is not there"
    renamed(cache, "m-Q4_K_M.gguf")
    assert cached.lacks(want, around) == ""


NO_FILES = json.dumps({cached._key(Want("o/m")): {"commit": COMMIT}})


@pytest.mark.parametrize("text", ["[]", "{", NO_FILES, NO_FILES.replace("}}", ', "files": [1]}}')])
def test_a_record_that_is_broken_is_none(cache: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "gpufleet").mkdir()
    (tmp_path / "gpufleet" / "models--o--m.json").write_text(text)
    assert cached.lacks(Want("o/m"), Surroundings("image", str(tmp_path))) == ""


@pytest.mark.parametrize("name", ["", "my model", "https://huggingface.co/o/m", "o/m/x", "o/..", " o/m"])
def test_what_is_no_name_is_refused_before_anybody_is_asked(tmp_path: Path, name: str) -> None:
    around = Surroundings("image", str(tmp_path / "none"))
    with pytest.raises(GpufleetError, match="is no name of a model") as raised:
        download.ensure_weights(nobody, [Want(name)], around, check=False, progress=Progress(None))
    assert (raised.value.name, repr(name) in raised.value.message) == ("model-not-found", True)


@pytest.mark.parametrize("revision", ["no such", "../..", "x" * 300])
def test_a_revision_that_is_none_is_not_in_the_cache(cache: Path, tmp_path: Path, revision: str) -> None:
    assert cached.lacks(Want("o/m", revision), Surroundings("image", str(tmp_path))) == "it is not in the cache"


@pytest.mark.parametrize(
    ("environment", "volume"),
    [
        ({}, "{mine}:/root/.cache/huggingface"),
        ({"HF_HOME": "/cache"}, "{mine}:/cache"),
        ({"HF_HUB_CACHE": "/cache/hub"}, "{mine}:/cache:ro"),
    ],
)
def test_a_cache_elsewhere_is_looked_at(cache: Path, tmp_path: Path, environment: dict[str, str], volume: str) -> None:
    volumes = [volume.format(mine=tmp_path)]
    around = Surroundings("image", "/var/none", environment, volumes=volumes, offline=True)
    assert not download.ensure_weights(nobody, [Want("o/m")], around, check=False, progress=Progress(None))["changed"]
    with pytest.raises(GpufleetError) as raised:
        download.ensure_weights(nobody, [Want("o/x")], around, check=False, progress=Progress(None))
    assert f"the Hugging Face cache ({tmp_path}/hub, by vllm_" in raised.value.message
    assert f"into {tmp_path}/hub " in raised.value.remedy
    looks = download._volumes(around, fetch=False)
    assert looks[-1] == volumes[0].removesuffix(":ro") + ":ro"


def test_a_part_of_a_model_is_not_taken_for_all_of_it(cache: Path, tmp_path: Path) -> None:
    """A model in parts whose index has not come either."""
    (cache / "model.safetensors").rename(cache / "model-00001-of-00003.safetensors")
    lack = cached.lacks(Want("o/m"), Surroundings("image", str(tmp_path)))
    assert lack == "model-00002-of-00003.safetensors, model-00003-of-00003.safetensors are not there or cut short"


def test_what_was_recorded_must_still_be_there(cache: Path, tmp_path: Path) -> None:
    want = Want("o/m", weights=False, load_format="dummy")
    around = Surroundings("image", str(tmp_path))
    assert cached.lacks(want, around) == ""  # the model with its weights is there
    renamed(cache, "model.other")
    assert cached.lacks(want, around) == "it was not fetched for this load-format"
    cached.note_fetched(str(tmp_path), want, {"commit": COMMIT, "files": {"config.json": 23, "tokenizer.json": None}})
    assert cached.lacks(want, around) == ""
    (cache / "config.json").write_text('{"a": 1}')
    assert cached.lacks(want, around) == "config.json is not there"
    (cache / "model.other").rename(cache / "model.safetensors")
    assert cached.lacks(Want("o/m"), around) == ""


def test_offline_names_what_is_missing_and_asks_nobody(cache: Path, tmp_path: Path) -> None:
    (cache / "model.safetensors").write_bytes(b"cut")
    for around in (
        Surroundings("image", str(tmp_path), offline=True),
        Surroundings("image", str(tmp_path), environment={"HF_HUB_OFFLINE": "1"}),
    ):
        with pytest.raises(GpufleetError) as raised:
            download.ensure_weights(nobody, [Want("o/m")], around, check=False, progress=Progress(None))
        assert (raised.value.name, "model.safetensors" in raised.value.message) == ("weights-missing", True)
        assert str(tmp_path) in raised.value.message


def test_a_dry_run_before_the_image_is_there_says_that_something_is_missing(tmp_path: Path) -> None:
    around = Surroundings("image", str(tmp_path))
    result = download.ensure_weights(lambda: None, [Want("o/m")], around, check=True, progress=Progress(None))
    assert (result["changed"], result["models"][0]["missing_files"]) == (True, ["it is not in the cache"])
    assert result["diff"][0]["before"] == "revision main: incomplete\n"


def test_the_container_gets_what_the_server_gets() -> None:
    around = Surroundings(
        "image",
        "/hf",
        environment={"HTTPS_PROXY": "http://proxy", "PYTHONPATH": "/x"},
        secrets={"HF_TOKEN": "t", "VLLM_API_KEY": "k"},
        volumes=["/data:/data", "/mine:/root/.cache/vllm"],
        ca_bundle="/etc/ssl/ca.crt",
    )
    environment = download._environment(around)
    assert environment["HF_HOME"] == "/root/.cache/huggingface"
    assert (environment["HTTPS_PROXY"], environment["HF_TOKEN"]) == ("http://proxy", "t")
    assert environment["REQUESTS_CA_BUNDLE"] == "/etc/gpufleet/ca-bundle.crt"
    assert not {"VLLM_API_KEY", "PYTHONPATH"} & set(environment)
    assert download._volumes(around, fetch=True) == [
        "/hf:/root/.cache/huggingface",
        "/etc/ssl/ca.crt:/etc/gpufleet/ca-bundle.crt:ro",
        "/data:/data",
    ]


def test_a_volume_of_dockers_own_is_left_out_of_a_download() -> None:
    around = Surroundings("image", "/hf", volumes=["/scratch", "/data:/data"])
    assert download._volumes(around, fetch=True) == ["/hf:/root/.cache/huggingface", "/data:/data"]


@contextlib.contextmanager
def another_run(hf_home: Path, until: threading.Event) -> Iterator[None]:
    """Hold the lock of a cache as another run does, until the event."""
    (hf_home / "gpufleet").mkdir(exist_ok=True)
    begun = threading.Event()

    def hold() -> None:
        with host_lock(str(hf_home / "gpufleet" / ".lock"), "download of o/m"):
            begun.set()
            until.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert begun.wait(60)
    try:
        yield
    finally:
        until.set()
        thread.join()


def test_what_another_run_fetches_meanwhile_is_waited_for_and_not_fetched_again(cache: Path, tmp_path: Path) -> None:
    until = threading.Event()

    class Told(Progress):
        """The other run brings what is missing once this one has said that it waits."""

        seen = ""

        def phase(self, name: str, detail: str = "") -> None:
            self.seen = f"{name}: {detail}"
            (cache / "tokenizer.json").write_text("{}")
            until.set()

    (cache / "tokenizer.json").unlink()
    (cache.parents[1] / "blobs").mkdir()
    (cache.parents[1] / "blobs" / "a").write_bytes(b"x" * 3 * 2**20)
    around = Surroundings("image", str(tmp_path), lock_timeout=60)
    progress = Told(None)
    no_engine: Any = object()
    with another_run(tmp_path, until):
        result = download.ensure_weights(lambda: no_engine, [Want("o/m")], around, check=False, progress=progress)
    assert (result["changed"], result["diff"], result["models"][0]["missing_files"]) == (False, [], [])
    waiting = r"weights of o/m: waiting for another run \(download of o/m, for \d+ s, process \d+\); 3\.0 MiB are there"
    assert re.fullmatch(waiting, progress.seen)


def test_who_may_not_wait_is_told_who_fetches(cache: Path, tmp_path: Path) -> None:
    (cache / "tokenizer.json").unlink()
    no_engine: Any = object()
    with another_run(tmp_path, threading.Event()), pytest.raises(GpufleetError, match="download of o/m") as raised:
        download.ensure_weights(
            lambda: no_engine, [Want("o/m")], Surroundings("i", str(tmp_path)), check=False, progress=Progress(None)
        )
    assert raised.value.name == "busy"


def test_a_cache_that_is_no_folder_is_told_by_its_variable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    no_engine: Any = object()
    for folder in ("file", "file/below"):
        around = Surroundings("image", str(tmp_path / folder))
        with pytest.raises(GpufleetError, match=f"{folder}/gpufleet cannot be written: Not a directory") as raised:
            download.ensure_weights(lambda: no_engine, [Want("o/m")], around, check=False, progress=Progress(None))
        assert (raised.value.name, "vllm_hf_home" in raised.value.remedy) == ("write-failed", True)


class Clock:
    """Seconds that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def lines(**state: Any) -> list[str]:
    return ["a warning", PROGRESS_MARK + json.dumps({"repository": "o/m", "files": 3, "of": 58, **state})]


def test_progress_in_a_line() -> None:
    clock = Clock()
    watch = Watch(900, Progress(None), clock)
    watch.take(lines(bytes=0, total=104 * 2**30, note=""))
    assert watch.text() == "3/58 files, 0.0 MiB of 104.0 GiB, 0 %"
    clock.now = 5
    watch.take(lines(bytes=10 * 2**30, total=104 * 2**30, note="trying again in 5 s: hub-rate-limit"))
    assert watch.text() == "3/58 files, 10.0 of 104.0 GiB, 9 %, 2048.0 MiB/s, trying again in 5 s: hub-rate-limit"
    watch.take(lines(bytes=10 * 2**30, total=0, note=""))
    assert watch.text() == "3/58 files, 10.0 GiB, 2048.0 MiB/s"


def test_a_download_without_a_further_byte_is_given_up() -> None:
    clock = Clock()
    watch = Watch(60, Progress(None), clock)
    watch.take(lines(bytes=5, total=10, note=""))
    clock.now = 59
    watch.take(lines(bytes=5, total=10, note=""))
    watch.take(lines(bytes=6, total=10, note=""))
    clock.now = 118
    watch.take([])
    clock.now = 120
    with pytest.raises(GpufleetError, match="vllm_stall_timeout") as raised:
        watch.take([])
    assert raised.value.name == "download-stalled"


@pytest.mark.parametrize("name", sorted(refusals.REFUSALS))
def test_every_refusal_is_a_sentence_with_a_remedy(name: str) -> None:
    around = Surroundings("image", "/hf", secrets={"HF_TOKEN": "hf_secret"})
    answer = {
        "name": name,
        "repository": "o/m",
        "revision": "v2",
        "text": "https://me:pw@hub/ hf_secret",
        "status": 403,
    }
    error = refusals.download_error({**answer, "needed": 3 * 2**30, "free": 2**30}, around)
    assert error.name == name
    assert "{" not in error.message + error.remedy
    assert error.remedy
    assert error.evidence == "https://***@hub/ ***"
    if name == "disk-full":
        assert "3.0 GiB are missing and 1.0 GiB are free" in error.message


def test_an_error_of_the_disk_never_sends_anybody_to_the_network() -> None:
    from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.hub_download import ERROR_KINDS
    from ansible_collections.gpufleet.vllm.plugins.module_utils.models.refusals import REFUSALS

    names = {kind.name for kind in ERROR_KINDS} - {"download-failed"}
    assert names <= set(REFUSALS)
    local = [kind for kind in ERROR_KINDS if kind.name in ("disk-full", "permission-denied", "storage-failed")]
    assert len(local) == 3
    for kind in ERROR_KINDS:
        words = " ".join(REFUSALS.get(kind.name, ("", "")))
        if kind.name in ("disk-full", "permission-denied", "storage-failed", "folder-not-writable"):
            assert not kind.transient
            assert "PROXY" not in words and "network" not in words, kind.name
