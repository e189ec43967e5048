# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tests of a new key for the replicas, at servers that have one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import pytest

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.members import Replica
from ansible_collections.gpufleet.vllm.plugins.module_utils.router.replica_key import check_key, refused_by
from ansible_collections.gpufleet.vllm.tests.fakes.keyed_replica import serving
from ansible_collections.gpufleet.vllm.tests.unit.conftest import free_port


@contextlib.contextmanager
def fleet(keys: Sequence[str | None]) -> Iterator[list[Replica]]:
    """Serve on a host for each key; None does not answer."""
    with contextlib.ExitStack() as stack:
        ports = [free_port() if key is None else stack.enter_context(serving(key)).port for key in keys]
        yield [Replica(f"gpu-{number}", "vllm-0", "127.0.0.1", port) for number, port in enumerate(ports, 1)]


@pytest.mark.parametrize(
    ("serve_with", "before", "refusing"),
    [
        (["new", "new"], "old", []),
        ([None, None], "old", []),
        ([None, "new"], "old", []),
        ([None, "new"], None, []),
        (["old", "new"], "old", ["gpu-1"]),
        (["old", "new", "new"], "old", ["gpu-1"]),
        (["other", "new"], None, ["gpu-1"]),
        ([], "old", []),
    ],
)
def test_a_key_is_taken_that_is_no_worse_than_the_one_before(
    serve_with: list[str | None], before: str | None, refusing: list[str]
) -> None:
    with fleet(serve_with) as replicas:
        assert check_key(replicas, "new", before) == refusing


@pytest.mark.parametrize(
    ("serve_with", "before"),
    [(["old"], "old"), ([None, "old"], "old"), (["old", "new", "old"], "old"), (["other"], "old"), (["other"], None)],
)
@pytest.mark.parametrize("key", ["new", ""])
def test_one_that_is_worse_is_refused_and_not_told(serve_with: list[str | None], before: str | None, key: str) -> None:
    with fleet(serve_with) as replicas, pytest.raises(GpufleetError) as caught:
        check_key(replicas, key, before)
    assert caught.value.name == "router-key-refused"
    named = [f"gpu-{number}" for number, serves in enumerate(serve_with, 1) if serves not in (None, key)]
    assert caught.value.details == {"hosts": named} and named[0] in caught.value.message
    assert "'new'" not in str(caught.value.as_result()) and "old" not in caught.value.message


def test_many_hosts_are_counted() -> None:
    assert "gpu-4, gpu-5 and 2 more refuse" in refused_by([f"gpu-{number}" for number in range(1, 8)])
