# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The order in which a change goes through a fleet, and what became of it: all that can be told without a host.

A host of a rollout is in one of these states, kept in a file of its own on the controller, so that a rollout that was
interrupted goes on where it stopped:

=========== ============================================================================
pending     its turn has not come, or has to come again
begun       its turn has come; it may be drained, replaced, or neither
done        it was replaced, verified and put back
failed      it did not get there; it was brought back to what it had, as far as possible
rolled-back it was done, and was brought back because the rollout was stopped
out         it failed in an earlier rollout, could not be brought back and gets no requests
=========== ============================================================================
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Nothing, Plan
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.shares import share_of
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.host_names import fold, in_order
from ansible_collections.gpufleet.vllm.plugins.plugin_utils.fleet.plan_page import plan_kind, plan_text

PENDING, BEGUN, DONE, FAILED, ROLLED_BACK, OUT = "pending", "begun", "done", "failed", "rolled-back", "out"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What the preparation found out about one host.

    Attributes:
        plan: what the inventory wishes for it; empty when C(error) says why there is none.
        changes: why its servers would be replaced; empty when there is nothing to do.
        error: why it cannot be changed; empty when it can.
        serves: whether a server of it serves now.
        served: digest of what was wished when what it serves was deployed, see wish_of; empty if that is not known.
        left_by: whose runs that did not end have left it out of the router.
        note: what people should know of its change.
        ungated: what a canary's verification would hold against nothing, with the reason.
    """

    plan: Plan | Nothing = dataclasses.field(default_factory=dict)
    changes: Sequence[str] = ()
    error: str = ""
    serves: bool = True
    served: str = ""
    left_by: Sequence[str] = ()
    note: str = ""
    ungated: Sequence[str] = ()

    def wish(self) -> str:
        """Return a digest of what the host should serve."""
        return wish_of(self.plan)


def wish_of(plan: Plan | Nothing) -> str:
    """Return a digest of what a plan has a host serve; empty without a plan."""
    return hashlib.sha256(plan_text(cast("Plan", plan)).encode()).hexdigest()[:16] if plan else ""


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Which hosts are changed when.

    Attributes:
        batches: hosts to change, in the order of their turns.
        canaries: those of the first batch of the whole rollout, which are verified the most.
        done: hosts that this rollout had changed before it was interrupted.
        same: hosts on which there is nothing to do.
        refused: hosts that cannot be changed, with the reason.
        unreachable: hosts that did not answer.
        stop: why nothing is to be changed at all; empty otherwise.
        left: hosts that a run that did not end has left out of the router.
        dark: hosts that are changed and do not serve now.
        notes: what people should know of the change of a host.
        ungated: what the verification of the canaries holds against nothing.
    """

    batches: list[list[str]]
    canaries: list[str]
    done: list[str]
    same: list[str]
    refused: dict[str, str]
    unreachable: list[str]
    stop: str
    left: list[str] = dataclasses.field(default_factory=list)
    dark: list[str] = dataclasses.field(default_factory=list)
    notes: dict[str, str] = dataclasses.field(default_factory=dict)
    ungated: list[str] = dataclasses.field(default_factory=list)

    @property
    def order(self) -> list[str]:
        """The hosts to change, in their order."""
        return [host for batch in self.batches for host in batch]


def arrange(
    hosts: Mapping[str, Prepared],
    unreachable: Iterable[str],
    states: Mapping[str, Mapping[str, Any]],
    sizes: Sequence[Any],
    max_failures: Any,
    *,
    require_gates: bool = False,
) -> Rollout:
    """Return which hosts are changed when. Those that get no requests come first, because no client loses a server.

    Args:
        hosts: what was found out about each host that answered.
        unreachable: names of the others.
        states: what earlier runs of this rollout left, by host: `state` and `wish`.
        sizes: of the batches, see batch_sizes.
        max_failures: see allowed.
        require_gates: whether a canary that would be held against nothing is reason to change nothing.
    """
    refused = {host: found.error for host, found in hosts.items() if found.error}
    able = {host: found for host, found in hosts.items() if not found.error}
    begun = [host for host, found in able.items() if _needs_its_turn(found, states.get(host, {}))]
    changing = [host for host, found in able.items() if found.changes and host not in begun]
    rest = [host for host in able if host not in begun and host not in changing]
    done = [host for host in rest if _is_done(hosts[host], states.get(host, {}))]
    dark = in_order(host for host in changing if not hosts[host].serves)
    lit = {host: plan_kind(cast("Plan", hosts[host].plan)) for host in changing if host not in dark}
    batches = cut(in_order(begun) + dark + mixed(lit), len(done), sizes)
    canaries = batches[0] if batches and not done else []
    ungated = list(dict.fromkeys(text for host in canaries for text in hosts[host].ungated))
    too_many = _too_many_refused(len(refused), len(hosts), max_failures)
    return Rollout(
        batches=batches,
        canaries=canaries,
        done=in_order(done),
        same=in_order(host for host in rest if host not in done),
        refused=refused,
        unreachable=in_order(unreachable),
        stop=too_many or (_gates_missing(ungated) if require_gates else ""),
        left=in_order(host for host, found in hosts.items() if found.left_by),
        dark=dark,
        notes={host: found.note for host, found in hosts.items() if found.note},
        ungated=ungated,
    )


def _is_done(found: Prepared, state: Mapping[str, Any]) -> bool:
    """Return whether an earlier run of this rollout has changed a host to what is wished now."""
    return state.get("state") == DONE and state["wish"] == found.wish()


def is_carried_out(states: Mapping[str, Mapping[str, Any]], hosts: Mapping[str, Prepared]) -> bool:
    """Return whether every host of a rollout serves what that was for, and the router sends requests to all of them.

    Args:
        states: what earlier runs of this rollout left, by host.
        hosts: what was found out about each host that answered.
    """
    return all(
        host in hosts
        and state["state"] in (PENDING, BEGUN, DONE)
        and state.get("wish") == hosts[host].served
        and hosts[host].serves
        and not hosts[host].left_by
        for host, state in states.items()
    )


def _gates_missing(ungated: Sequence[str]) -> str:
    """Return why nothing is changed where every gate is required; empty if the canaries have them all."""
    if not ungated:
        return ""
    return f"vllm_rollout_require_gates is true, and the canary would be held against nothing: {'; '.join(ungated)}"


def _too_many_refused(refused: int, total: int, max_failures: Any) -> str:
    """Return why nothing is changed where too many hosts cannot be changed; empty if they are not too many."""
    if refused <= allowed(max_failures, total):
        return ""
    return f"{refused} of {total} hosts cannot be changed, more than vllm_rollout_max_failures ({max_failures}) allows"


def _needs_its_turn(found: Prepared, state: Mapping[str, Any]) -> bool:
    """Return whether the router may still keep requests from a host, for what an earlier run left of its turn.

    That is so whatever was wished then. Only a turn, even one without a change, has it verified and put back. The
    router knows by itself whom a run has left, wherever that run kept its state.
    """
    left = bool(found.left_by) or state.get("state") in (BEGUN, OUT)
    return left or (state.get("state") == FAILED and not found.changes)


def canaries_of(found: Rollout, earlier: Iterable[str]) -> list[str]:
    """Return the hosts of a run that are verified the most.

    Args:
        found: what was arranged.
        earlier: the canaries of the runs before it. They count where they take part in this run; and where no host of
            this run is done, nothing has proved the change there yet: its first batch has to.
    """
    return [host for host in earlier if host in (*found.order, *found.done)] if found.done else found.canaries


def mixed(kinds: Mapping[str, str]) -> list[str]:
    """Return hosts so that each kind of them comes up as early and as often as its share: the largest kind first."""
    groups: dict[str, list[str]] = {}
    for host in in_order(kinds):
        groups.setdefault(kinds[host], []).append(host)
    # The n-th of N hosts of a kind stands at (n + 1/2) / N of the way; a kind of its own comes first once.
    firsts = sorted(groups.values(), key=lambda hosts: (-len(hosts), in_order(hosts)[0]))
    places = [
        (0.0 if number == 0 else (number + 0.5) / len(hosts), rank, host)
        for rank, hosts in enumerate(firsts)
        for number, host in enumerate(hosts)
    ]
    return [host for _place, _rank, host in sorted(places, key=lambda place: place[:2])]


def batch_sizes(total: int, sizes: Sequence[Any]) -> list[int]:
    """Return how many hosts each batch has, C(total) in all.

    Args:
        total: number of hosts.
        sizes: numbers, or shares of C(total) such as C(10%), of which each gives one host at least; the last one counts
            for all further batches.

    Raises:
        GpufleetError: C(invalid-wishes).
    """
    if not sizes:
        raise GpufleetError(
            f"vllm_rollout_batches: {sizes!r} is empty.",
            name="invalid-wishes",
            remedy="Write whole numbers from 1 on, or percentages such as '10%'.",
        )
    found = [share_of(size, total, "vllm_rollout_batches", least=1) for size in sizes]
    result: list[int] = []
    left = total
    for size in itertools.chain(found, itertools.repeat(found[-1])):
        if left <= 0:
            return result
        result.append(min(size, left))
        left -= size
    return result


def cut(pending: Sequence[str], done: int, sizes: Sequence[Any]) -> list[list[str]]:
    """Return the batches of the hosts whose turn has not come, as if those that are C(done) had been the first."""
    batches = []
    first = 0
    for size in batch_sizes(len(pending) + done, sizes):
        last = first + size
        batch = list(pending[max(0, first - done) : max(0, last - done)])
        if batch:
            batches.append(batch)
        first = last
    return batches


def allowed(max_failures: Any, total: int) -> int:
    """Return how many hosts may fail: a number, or a share of all hosts such as C(5%), rounded down.

    Raises:
        GpufleetError: C(invalid-wishes).
    """
    return share_of(max_failures, total, "vllm_rollout_max_failures", least=0)


def why_stop(states: Mapping[str, Mapping[str, Any]], max_failures: Any, total: int) -> str:
    """Return why a rollout must not go on; empty when it may.

    Args:
        states: of the hosts: C(state), C(canary) and C(why).
        max_failures: see allowed.
        total: number of hosts of the rollout.
    """
    failed = {host: state for host, state in states.items() if state["state"] == FAILED}
    canaries = [host for host in failed if failed[host].get("canary")]
    if canaries:
        host = in_order(canaries)[0]
        return f"the canary {host} failed: {failed[host]['why']}"
    if len(failed) > allowed(max_failures, total):
        host = in_order(failed)[0]
        return (
            f"{len(failed)} of {total} hosts failed, more than vllm_rollout_max_failures ({max_failures}) allows:"
            f" {fold(failed)}; the first of them: {failed[host]['why']}"
        )
    return ""


def left_to_do(states: Mapping[str, Mapping[str, Any]], stopped: bool) -> list[str]:
    """Return the hosts that a rollout still has something to do for: those of a stopped one are to be brought back."""
    unfinished = (DONE, BEGUN) if stopped else (PENDING, BEGUN)
    return in_order(host for host, state in states.items() if state["state"] in unfinished)


def still_out(states: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the hosts that get no requests because they failed and could not be brought back."""
    return in_order(
        host
        for host, state in states.items()
        if state["state"] == OUT or (state["state"] == FAILED and state.get("out"))
    )
