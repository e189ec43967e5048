# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The last deployments of a host: what served there, so that it can serve again.

Each is one file, C(<config_dir>/history/<id>.json), of the schema below; none holds a secret. A deployment is recorded
when its servers have answered (outcome C(ready)) or when its replacement failed and the old servers were put back
(C(failed)). The newest that became ready is the current one.

================== ================================================================================================
schema_version     1
id                 name of the deployment: its time in UTC as C(20261122-165501)
number             counts up, and so gives the order even where a clock was set back
time               the same time as C(2026-11-22T16:55:01Z)
outcome            C(ready) or C(failed)
error              C(name) and C(message) of what failed; empty otherwise
rolled_back_to     the id of the deployment that this one brought back; empty for any other
fingerprint        of everything that matters for the servers
collection_version that made it
model, vllm_version for people, from the plan
image              C(reference), C(id), C(digests) under which registries know it, and C(kept_as), our own name of it
plan               the plan of these servers; empty when they were not made from one
configurations     the texts of the configuration files by replica
server             the options of the module vllm_server by which the same servers are made again
================== ================================================================================================

The image of every kept deployment that became ready has a name of ours, C(gpufleet/kept:<prefix>-<12 digits of its
id>), so that C(docker image prune) or moving the deployment's tag does not take it away.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import (
    NOTHING,
    Replica,
    Spec,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.linux import list_folder, read_text
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.served_names import served_names
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.client import engine_errors
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.names import VERSION
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.spec import ServerOptions
from ansible_collections.gpufleet.vllm.plugins.module_utils.images.local import (
    inspect_image,
    names_restored_on_failure,
    tag_image,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils.models.hub_cache import hub_cache, hub_folder
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.config_file import MARK
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.history_entries import (
    FAILED,
    FOLDER,
    READY,
    SCHEMA_VERSION,
    Entry,
    current,
    fingerprint,
    fingerprints,
    read_entries,
    replicas_of,
)

if TYPE_CHECKING:
    from docker import DockerClient


KEPT = "gpufleet/kept"
HTTP_CONFLICT = 409


def check_possible(client: DockerClient, entry: Entry) -> None:
    """Check that a deployment can be brought back.

    Raises:
        GpufleetError: C(rollback-image-gone) or C(rollback-weights-gone).
    """
    image = entry["image"]
    if inspect_image(client, image["id"]) is None:
        pull = f"docker pull {image['digests'][0]}" if image["digests"] else f"docker load (of {image['reference']})"
        raise GpufleetError(
            f"The image of the deployment {entry['id']} is not on this host any more: {image['reference']},"
            f" {image['id'][:19]}.",
            name="rollback-image-gone",
            remedy=f"Bring it back first ({pull}), or go back to another deployment with vllm_rollback_to. Something"
            f" removed its name {image['kept_as']} (docker image prune --all does).",
            details={"image": image},
        )
    server = entry["server"]
    environment = next((replica.get("environment") or {} for replica in replicas_of(entry)), {})
    cache = hub_cache(
        server["hf_home"], {**environment, **(server.get("environment") or {})}, server.get("volumes") or ()
    )
    check_weights(server["model_source"], cache.folder, entry["id"])


def check_weights(source: Mapping[str, str], hub: str, what: str) -> None:
    """Check that the weights are still there, in their folder or in the Hugging Face cache.

    Args:
        source: the plan's C(model_source).
        hub: folder of the server's cache, see hub_cache; where it is no folder of the host nothing is known.
        what: which deployment it is.

    Raises:
        GpufleetError: C(rollback-weights-gone).
    """
    folder = source.get("mount") or ""
    if folder:
        problem = "" if os.path.isfile(os.path.join(folder, "config.json")) else f"{folder} has no config.json"
    else:
        snapshots = os.path.join(hub_folder(hub, source["argument"].partition(":")[0]), "snapshots")
        problem = "" if list_folder(snapshots) or not hub else f"{snapshots} is empty or missing"
    if problem:
        raise GpufleetError(
            f"The weights of the deployment {what} are not on this host any more: {problem}.",
            name="rollback-weights-gone",
            remedy="Bring them back first, or go back to another deployment with vllm_rollback_to.",
            details={"model_source": dict(source)},
        )


class History:
    """The recorded deployments of one host, and the images they keep.

    Args:
        client: the Docker SDK's client.
        config_dir: host folder of the replicas' configurations.
        prefix: of the containers' names.
        keep: number of deployments to keep; 0 keeps none and removes what there is.
        plan: from which the servers of this run are made; empty when they are not made from one.
    """

    def __init__(
        self, client: DockerClient, config_dir: str, prefix: str, keep: int, plan: Mapping[str, Any] = NOTHING
    ) -> None:
        self._client = client
        self._folder = os.path.join(config_dir, FOLDER)
        self._config_dir = config_dir
        self._prefix = prefix
        self._keep = keep
        self._plan = dict(plan)

    def note_ready(
        self,
        specs: Sequence[Spec],
        replicas: Sequence[Replica],
        wishes: ServerOptions,
        texts: Mapping[str, str],
        rolled_back_to: str = "",
    ) -> str:
        """Record that these servers serve, unless they are what the newest entry says, and forget the oldest.

        Args:
            specs: of the servers.
            replicas: as the module vllm_server got them.
            wishes: what they share.
            texts: of their configurations, by replica.
            rolled_back_to: id of the deployment that this one brought back; empty if it brought none.

        Returns:
            The id of the new entry; empty when there was nothing to record.
        """
        entries = read_entries(self._config_dir)
        serving = current(entries)
        known = serving is not None and serving["fingerprint"] in fingerprints(specs) and not rolled_back_to
        recorded = ""
        if self._keep and specs and not known:
            entry = self._entry(entries, specs, replicas, wishes)
            entry.update(rolled_back_to=rolled_back_to, configurations=dict(texts))
            self._write(entry)
            entries.append(entry)
            recorded = str(entry["id"])
        kept = self._forget(entries)
        self._keep_images(kept)
        return recorded

    def note_failed(
        self, specs: Sequence[Spec], replicas: Sequence[Replica], wishes: ServerOptions, error: GpufleetError
    ) -> str:
        """Record that these servers did not become ready; the same failure again takes the place of the last."""
        entries = read_entries(self._config_dir)
        if not self._keep or not specs:
            return ""
        entry = self._entry(entries, specs, replicas, wishes)
        entry.update(outcome=FAILED, error={"name": error.name, "message": error.message})
        if entries and entries[-1]["outcome"] == FAILED and entries[-1]["fingerprint"] == entry["fingerprint"]:
            self._remove(entries.pop())
        self._write(entry)
        self._forget([*entries, entry])
        return str(entry["id"])

    def paths(self) -> list[str]:
        """Return the files of the history."""
        return [os.path.join(self._folder, name) for name in list_folder(self._folder) if name.endswith(".json")]

    def forget_all(self) -> None:
        """Remove every entry and every name of an image that they kept."""
        for path in self.paths():
            os.unlink(path)
        with contextlib.suppress(OSError):
            os.rmdir(self._folder)
        self._keep_images([])

    # Entries

    def _entry(
        self,
        entries: Sequence[Entry],
        specs: Sequence[Spec],
        replicas: Sequence[Replica],
        wishes: ServerOptions,
    ) -> Entry:
        now = time.time()
        plan = self._plan
        model = served_names(specs[0]["config"], wishes.model_source["argument"])[0]
        return {
            "schema_version": SCHEMA_VERSION,
            "id": self._free_id(now),
            "number": 1 + max((int(entry["number"]) for entry in entries), default=0),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
            "outcome": READY,
            "error": {},
            "rolled_back_to": "",
            "fingerprint": fingerprint(specs),
            "collection_version": VERSION,
            "model": plan.get("model") or str(model).split()[0],
            "vllm_version": (plan.get("image") or NOTHING).get("vllm_version") or "",
            "image": self._image(wishes),
            "plan": plan,
            "configurations": {},
            "server": server_options(replicas, wishes),
        }

    def _image(self, wishes: ServerOptions) -> dict[str, Any]:
        image = inspect_image(self._client, wishes.image_id) or {}
        return {
            "reference": (self._plan.get("image") or NOTHING).get("reference") or wishes.image,
            "id": wishes.image_id,
            "digests": list(image.get("RepoDigests") or []),
            "kept_as": kept_name(self._prefix, wishes.image_id),
            "python_path": wishes.python_path,
        }

    def _free_id(self, now: float) -> str:
        name = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now))
        taken = set(list_folder(self._folder))
        number = 2
        free = name
        while f"{free}.json" in taken:
            free, number = f"{name}-{number}", number + 1
        return free

    def _write(self, entry: Entry) -> None:
        text = json.dumps(entry, indent=2, ensure_ascii=False) + "\n"
        path = os.path.join(self._folder, f"{entry['id']}.json")
        write_file(path, text, 0o640, folder_mode=0o750, variable="vllm_config_dir")

    def _remove(self, entry: Entry) -> None:
        os.unlink(os.path.join(self._folder, f"{entry['id']}.json"))

    def _forget(self, entries: Sequence[Entry]) -> list[Entry]:
        """Remove what is beyond the number to keep; return what stays.

        Failed deployments never push out one that served; they go with the served ones that are older than they.
        """
        served = _last([entry for entry in entries if entry["outcome"] == READY], self._keep)
        oldest = served[0]["number"] if served else 0
        failed = [entry for entry in entries if entry["outcome"] != READY and entry["number"] > oldest]
        stay = {entry["id"] for entry in [*served, *_last(failed, self._keep)]}
        for entry in entries:
            if entry["id"] not in stay:
                self._remove(entry)
        return [entry for entry in entries if entry["id"] in stay]

    # Images

    def _keep_images(self, entries: Iterable[Entry]) -> None:
        """Give our name to the image of each deployment that served, and take it from all others."""
        wanted = {entry["image"]["kept_as"]: entry["image"]["id"] for entry in entries if entry["outcome"] == READY}
        with engine_errors("looking at the images of earlier deployments"):
            images = self._client.images.list(name=KEPT)
        ours = re.compile(re.escape(f"{KEPT}:{self._prefix}-") + "[0-9a-f]{12}")
        there = {tag for image in images for tag in image.tags if ours.fullmatch(tag)}
        for name, image_id in wanted.items():
            if name not in there:
                self._name(image_id, name)
        for name in sorted(there - wanted.keys()):
            self._unname(name)

    def _name(self, image_id: str, name: str) -> None:
        if inspect_image(self._client, image_id) is not None:
            tag_image(self._client, image_id, name)

    def _unname(self, name: str) -> None:
        """Take a name of ours away; where it is the last one of an image that a container uses, it stays."""
        from docker.errors import APIError, ImageNotFound

        with engine_errors(f"removing the name {name}"), contextlib.suppress(ImageNotFound):
            try:
                self._client.images.remove(name)
            except APIError as error:
                if error.status_code != HTTP_CONFLICT:
                    raise


def _last(entries: Sequence[Entry], count: int) -> Sequence[Entry]:
    return entries[max(0, len(entries) - count) :]


def kept_name(prefix: str, image_id: str) -> str:
    """Return the name under which the image of a kept deployment stays on the host."""
    return f"{KEPT}:{prefix}-{image_id.rpartition(':')[2][:12]}"


def server_options(replicas: Sequence[Replica], wishes: ServerOptions) -> dict[str, Any]:
    """Return the options of vllm_server by which the same servers are made again, without secrets."""
    options = dataclasses.asdict(wishes)
    del options["image_id"], options["python_path"]
    return {
        **{name: list(value) if isinstance(value, tuple) else value for name, value in options.items()},
        "replicas": [dict(replica) for replica in replicas],
    }


def recorded_wishes(entry: Entry) -> ServerOptions:
    """Return what all replicas of a deployment share.

    Raises:
        GpufleetError: C(deployment-unreadable) for one that lacks what this version of the collection needs to know.
    """
    known = {field.name for field in dataclasses.fields(ServerOptions)}
    needed = {field.name for field in dataclasses.fields(ServerOptions) if _is_needed(field)} - {"image_id"}
    missing = sorted(needed - entry["server"].keys())
    if missing:
        raise GpufleetError(
            f"The deployment {entry['id']} was recorded by version {entry['collection_version']} of this collection,"
            f" which did not keep {', '.join(missing)}.",
            name="deployment-unreadable",
            remedy="Set the variables to what you want and deploy, or go back by that version of the collection.",
        )
    options = {name: value for name, value in entry["server"].items() if name in known}
    image = entry["image"]
    options.update(image_id=image["id"], python_path=image.get("python_path", ""), volumes=tuple(options["volumes"]))
    return ServerOptions(**options)


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


# Bringing one back


@contextlib.contextmanager
def brought_back(client: DockerClient, entry: Entry, config_dir: str, *, check: bool) -> Iterator[list[dict[str, Any]]]:
    """Restore the files and the image's name of a deployment, and take that back if the block fails.

    Yields:
        The differences of the files, for Ansible's diff.
    """
    files = {os.path.join(config_dir, f"{name}.yaml"): text for name, text in entry["configurations"].items()}
    files.update({path: "" for path in our_configurations(config_dir) if path not in files})
    before = {path: read_text(path) for path in files}
    diffs = [
        {"before_header": path, "after_header": path, "before": before[path], "after": text}
        for path, text in files.items()
        if before[path] != text
    ]
    if check:
        yield diffs
        return
    name = entry["server"]["image"]
    with names_restored_on_failure(client, {name: inspect_image(client, name)}):
        tag_image(client, entry["image"]["id"], name)
        try:
            for diff in diffs:
                _put(diff["after_header"], diff["after"])
            yield diffs
        except Exception:
            for diff in diffs:
                _put(diff["before_header"], diff["before"])
            raise


def our_configurations(config_dir: str) -> list[str]:
    """Return the configuration files of replicas that vllm_config wrote into the folder."""
    names = [name for name in list_folder(config_dir) if name.endswith(".yaml")]
    return [os.path.join(config_dir, name) for name in names if read_text(config_dir, name).startswith(MARK)]


def _put(path: str, text: str) -> None:
    """Write the file, or remove it if the text is empty."""
    if text:
        write_file(path, text, 0o640, variable="vllm_config_dir")
    elif os.path.lexists(path):
        os.unlink(path)
