# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rules that let only some addresses reach the servers' ports of a host.

A port that Docker publishes goes by the chains of the host's own firewall: a packet to it is forwarded, after its
destination was exchanged, and Docker lets it pass. What is done before is up to the chain DOCKER-USER, which Docker
leaves alone. A server that uses the host's network, and what Docker's own proxy hands on, is asked by INPUT. So each
deployment has a chain of its own, and DOCKER-USER, INPUT and FORWARD lead there. Where Docker uses nftables itself,
nothing leads to DOCKER-USER, and FORWARD counts.

The rules are kept in files, and systemd puts them back before Docker starts at boot. One command of iptables-restore
exchanges a whole chain at once, and what is connected goes on.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.addresses import is_loopback
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError

FOLDER = "/etc/gpufleet-ports"
SCRIPT = "/usr/local/sbin/gpufleet-close-ports"
UNIT = "gpufleet-close-ports.service"
HOOKS = ("INPUT", "FORWARD", "DOCKER-USER")
FAMILIES = {4: "iptables", 6: "ip6tables"}
EVERY_ADDRESS = ("", "0.0.0.0", "::")  # noqa: S104  compared
CHAIN_LENGTH = 28
IPV6 = "/proc/net/if_inet6"
NEW = "-p tcp -m conntrack --ctstate NEW"
REFUSE = "-j REJECT --reject-with tcp-reset"
SCRIPT_TEXT = f"""#!/bin/sh
# Written by the collection gpufleet.vllm. Puts the rules in {FOLDER} in their places; they let only routers and
# monitoring hosts reach the servers' ports.
PATH=$PATH:/usr/sbin:/sbin
status=0
for rules in {FOLDER}/*.v4 {FOLDER}/*.v6; do
    [ -e "$rules" ] || continue
    case $rules in *.v4) program=iptables ;; *) program=ip6tables ;; esac
    [ "$program" = iptables ] || [ -e {IPV6} ] || continue
    chain=$(sed -n 's/^:\\([^ ]*\\) .*/\\1/p' "$rules")
    if ! "$program-restore" --wait --noflush < "$rules"; then
        status=1
        continue
    fi
    # Docker takes the chain that is there.
    "$program" --wait --new-chain DOCKER-USER 2> /dev/null
    for hook in {" ".join(HOOKS)}; do
        "$program" --wait --check "$hook" --jump "$chain" 2> /dev/null && continue
        "$program" --wait --insert "$hook" --jump "$chain" || status=1
    done
done
exit $status
"""
UNIT_TEXT = f"""# Written by the collection gpufleet.vllm.
[Unit]
Description=Close the servers' ports to all but the routers (gpufleet.vllm)
After=network-pre.target iptables.service ip6tables.service netfilter-persistent.service nftables.service
After=ufw.service firewalld.service
Before=docker.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={SCRIPT}

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True)
class Listener:
    """Where a server is asked: the address and the port of its host."""

    host: str
    port: int


def reachable_listeners(replicas: Iterable[Mapping[str, object]]) -> list[Listener]:
    """Return those of a plan's replicas that other machines reach."""
    found = [Listener(str(replica["host"]).strip("[]"), int(str(replica["port"]))) for replica in replicas]
    return [listener for listener in dict.fromkeys(found) if not is_loopback(listener.host)]


def sources_of(given: Sequence[str]) -> dict[int, list[str]]:
    """Return addresses and networks by family, as iptables writes them.

    Raises:
        GpufleetError: C(invalid-source), naming all that are none.
    """
    found: dict[int, set[str]] = {family: set() for family in FAMILIES}
    wrong = []
    for text in given:
        try:
            network = ipaddress.ip_network(text.strip().strip("[]").partition("%")[0], strict=False)
        except ValueError:
            wrong.append(text)
            continue
        if not (network.is_loopback or network.is_link_local):
            found[network.version].add(str(network))
    if wrong:
        raise GpufleetError(
            f"vllm_allowed_sources: {', '.join(map(repr, wrong))} is neither an address nor a network.",
            name="invalid-source",
            remedy="Name addresses such as 10.0.0.5 or fd00::5, or networks such as 10.0.0.0/24; a name may have"
            " another address tomorrow.",
        )
    return {family: sorted(texts) for family, texts in found.items()}


def chain_name(deployment: str) -> str:
    """Return the name of a deployment's chain."""
    name = f"GPUFLEET-{re.sub('[^A-Za-z0-9_.-]', '_', deployment)}"
    if len(name) <= CHAIN_LENGTH and name == f"GPUFLEET-{deployment}":
        return name
    return f"{name[: CHAIN_LENGTH - 9]}-{hashlib.sha256(deployment.encode()).hexdigest()[:8]}"


def rules(deployment: str, listeners: Sequence[Listener], sources: Sequence[str], family: int) -> str:
    """Return a deployment's chain for iptables-restore; empty where no server has an address of that family.

    Args:
        deployment: what tells it from others on its host, the prefix of its containers.
        listeners: its servers that other machines reach.
        sources: addresses and networks of the family that may ask them.
        family: 4 or 6.
    """
    chain = chain_name(deployment)
    refused = [rule for listener in listeners for rule in _refused(listener, family)]
    if not refused:
        return ""
    lines = [
        "-m conntrack --ctstate RELATED,ESTABLISHED -j RETURN",
        "-i lo -j RETURN",
        *(f"-s {source} -j RETURN" for source in sources),
        *refused,
    ]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
    lines.append(f"-m comment --comment {digest} -j RETURN")
    return "\n".join(["*filter", f":{chain} - [0:0]", *(f"-A {chain} {line}" for line in lines), "COMMIT"]) + "\n"


def _refused(listener: Listener, family: int) -> list[str]:
    """Return the rules that refuse what asks a server: here, and forwarded to its container."""
    anywhere = listener.host in EVERY_ADDRESS
    if not anywhere and ipaddress.ip_address(listener.host).version != family:
        return []
    here = "-m addrtype --dst-type LOCAL" if anywhere else f"-d {ipaddress.ip_network(listener.host)}"
    asked = "" if anywhere else f" --ctorigdst {listener.host}"
    # Not what a container here asks of another machine: that one's destination was not exchanged.
    return [
        f"{here} {NEW} -m tcp --dport {listener.port} {REFUSE}",
        f"-p tcp -m conntrack --ctstate DNAT --ctorigdstport {listener.port}{asked} {REFUSE}",
    ]


def is_in_place(rules_text: str, chain: str, listed: str, hooks: Mapping[str, bool]) -> bool:
    """Return whether the kernel has a chain as it is wanted.

    Args:
        rules_text: the wanted chain, for iptables-restore.
        chain: its name.
        listed: what C(iptables -S) says of the chain; empty where there is none.
        hooks: for each chain that is to lead there, whether it does.
    """
    wanted = [line for line in rules_text.splitlines() if line.startswith("-A ")]
    there = [line for line in listed.splitlines() if line.startswith("-A ")]
    mark = re.search(r"--comment (\S+)", wanted[-1]) if wanted else None
    return bool(mark and there and mark[1] in there[-1] and len(there) == len(wanted) and all(hooks.values()))


def rules_path(deployment: str, family: int) -> str:
    """Return where a deployment's chain is kept."""
    return os.path.join(FOLDER, f"{chain_name(deployment)}.v{family}")


def kept_sources(text: str) -> list[str]:
    """Return the sources that a kept chain lets in."""
    return re.findall(r"^-A \S+ -s (\S+) -j RETURN$", text, flags=re.MULTILINE)


def kept_listeners(text: str) -> list[Listener]:
    """Return the servers that a kept chain closes."""
    found = re.findall(r"-d (\S+)/\d+ .*--dport (\d+)|--dst-type LOCAL .*--dport (\d+)", text)
    return [Listener(host or "0.0.0.0", int(port or other)) for host, port, other in found]  # noqa: S104  any
