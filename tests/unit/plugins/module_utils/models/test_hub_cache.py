# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a server's cache of the hub lies on its host."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.models.hub_cache import hub_cache

CACHE = "/root/.cache/huggingface"


@pytest.mark.parametrize(
    ("environment", "volumes", "folder", "told"),
    [
        ({}, [], "/hf/hub", "vllm_hf_home (/hf)"),
        ({"HF_HOME": f"{CACHE}/"}, ["/data:/data", "/scratch"], "/hf/hub", "vllm_hf_home (/hf)"),
        ({}, [f"/mine:{CACHE}"], "/mine/hub", "the Hugging Face cache (/mine/hub, by vllm_volumes)"),
        ({}, ["/mine:/root/.cache"], "/hf/hub", "vllm_hf_home (/hf)"),
        ({}, [f"/mine:{CACHE}/hub:ro,z"], "/mine", "the Hugging Face cache (/mine, by vllm_volumes)"),
        ({"HF_HOME": "/data/a/b"}, ["/data:/data", "/x:/data/a"], "/x/b/hub", "(/x/b/hub, by vllm_environment)"),
        ({"HF_HUB_CACHE": "/data", "HF_HOME": "/no"}, ["/srv/c:/data"], "/srv/c", "(/srv/c, by vllm_environment)"),
        ({"HUGGINGFACE_HUB_CACHE": "~/.cache/huggingface/own"}, [], "/hf/own", "(/hf/own, by vllm_environment)"),
    ],
)
def test_on_the_host(environment: dict[str, str], volumes: list[str], folder: str, told: str) -> None:
    cache = hub_cache("/hf", environment, volumes)
    assert (cache.folder, cache.elsewhere) == (folder, "")
    assert str(cache).endswith(told)


@pytest.mark.parametrize(
    ("environment", "volumes", "words"),
    [
        ({}, [f"models:{CACHE}"], "the Hugging Face cache is in Docker's volume models"),
        ({}, [CACHE], f"a folder or volume of its own at {CACHE}"),
        ({"HF_HOME": "/data"}, ["/database:/database"], "HF_HOME in vllm_environment (/data) is on no mount"),
        ({"HF_HOME": "/root/.cache/vllm/x"}, [], "a folder or volume of its own at /root/.cache/vllm"),
        ({"HF_HUB_CACHE": "cache"}, [], "HF_HUB_CACHE in vllm_environment (cache) is no absolute path"),
        ({"HF_HUB_CACHE": ""}, [], "is no absolute path"),
    ],
)
def test_not_on_the_host(environment: dict[str, str], volumes: list[str], words: str) -> None:
    cache = hub_cache("/hf", environment, volumes)
    assert cache.folder == ""
    assert words in cache.elsewhere
