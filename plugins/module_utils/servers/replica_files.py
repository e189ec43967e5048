# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The files that a run writes for the replicas of a deployment.

A container mounts its own copy of the configuration, `<config_dir>/active/<name>-<hash>.yaml`, because the file of the
replica is rewritten before the server is replaced, and an old server that comes back must find what it had.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Mapping, Sequence

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import Spec
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.secret_names import KEY_VARIABLE
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers import run_line
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.attributes import mounted_config
from ansible_collections.gpufleet.vllm.plugins.module_utils.containers.names import base_name, belongs_to
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.control_files import control_files
from ansible_collections.gpufleet.vllm.plugins.module_utils.in_container.paths import CACHES
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.keys import Keys, update
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.own_containers import OwnContainers
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.settings import Settings
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.steps import Step, required

VARIABLE = "vllm_config_dir"  # moves what is written here elsewhere


class ReplicaFiles:
    """The files of one deployment's replicas.

    Args:
        own: the deployment's containers.
        settings: how to go about it.
        secrets: environment variables that must not be seen.

    Attributes:
        changed: whether a file was written that was not there as it is.
        keys_changed: the replicas that take other keys than before.
    """

    def __init__(self, own: OwnContainers, settings: Settings, secrets: Mapping[str, str]) -> None:
        self.changed = False
        self.keys_changed: list[str] = []
        self._own = own
        self._settings = settings
        self._secrets = secrets
        self._texts: dict[str, str] = {}

    def read_config(self, spec: Spec) -> None:
        """Read the configuration of a replica once: someone may change the file while the server is replaced.

        Raises:
            GpufleetError: `config-missing`.
        """
        path = self._config_path(spec["name"])
        if not os.path.isfile(path):
            raise GpufleetError(
                f"The configuration {path} of replica {spec['name']} is missing.",
                name="config-missing",
                remedy="Write it first with gpufleet.vllm.vllm_config (entry point config of the role"
                " gpufleet.vllm.vllm), and see that both use the same vllm_config_dir.",
            )
        with open(path, encoding="utf-8") as stream:
            self._texts[spec["name"]] = stream.read()

    def config_text(self, spec: Spec) -> str:
        """Return the text of the replica's configuration; check mode has no file yet, and makes it from the plan."""
        if spec["name"] in self._texts:
            return self._texts[spec["name"]]
        # JSON's strings and numbers are YAML's.
        entries = [f"{json.dumps(key)}: {json.dumps(value)}\n" for key, value in spec["config"].items()]
        return "".join(entries) or "{}\n"

    def copy_config(self, spec: Spec) -> str:
        """Return the copy of the replica's configuration that its container mounts; make it if it is not there."""
        text = self.config_text(spec)
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        path = os.path.join(self._settings.config_dir, "active", f"{spec['name']}-{digest}.yaml")
        # The image's user need not be root. Nothing in it is secret, and the folder keeps others on the host out.
        write_file(path, text, 0o644, folder_mode=0o750, variable=VARIABLE)
        return path

    def drop_unused_copies(self) -> None:
        """Remove the copies of configurations that no container mounts."""
        copies = os.path.join(self._settings.config_dir, "active")
        mounted = {mounted_config(container) for container in self._own.by_name().values()}
        for entry in sorted(os.listdir(copies)) if os.path.isdir(copies) else []:
            path = os.path.join(copies, entry)
            if path not in mounted and belongs_to(self._settings.prefix, _replica_of(entry)):
                os.unlink(path)

    def make_folders(self) -> None:
        """Make the cache folders that the containers mount."""
        caches = [os.path.join(self._settings.cache_dir, name) for name in CACHES]
        for path in [self._settings.hf_home, *caches]:
            if not os.path.isdir(path):
                os.makedirs(path, mode=0o755)

    def write_controls(self, specs: Sequence[Spec]) -> None:
        """Write what the servers find in their control folders; it does not count as a change of the servers."""
        for spec in specs:
            watchdog = 0 if spec["restart_policy"] == "no" else self._settings.watchdog
            control = self._own.control(spec["name"])
            tables = control.tables(self._settings.plan.get("moe_tables") or {})
            for path, text in {**control_files(control.folder, watchdog), **tables}.items():
                self.changed |= write_file(path, text, 0o644, variable=VARIABLE)

    def write_keys(self, specs: Sequence[Spec]) -> None:
        """Write which keys the servers take; check mode only notes where that would be a change."""
        settings = self._settings
        keys = Keys(self._secrets.get(KEY_VARIABLE, ""), settings.accepted_keys, settings.other_keys_for)
        self.keys_changed = [
            spec["name"] for spec in specs if update(settings.config_dir, spec["name"], keys, check=settings.check)
        ]

    def tidy(self, steps: Sequence[Step]) -> None:
        """Write the run lines and secrets of the servers that run, and remove the files of those that do not."""
        for step in steps:
            if step.spec is None:
                for path in self.written_for(base_name(step.name)):
                    os.unlink(path)
                self._own.control(step.name).remove()
            else:
                self._write_secrets(step.name)
                text = run_line.script(self.run_line(step), step.name)
                path = os.path.join(self._settings.config_dir, f"{step.name}.sh")
                self.changed |= write_file(path, text, 0o640, variable=VARIABLE)
        self.drop_unused_copies()

    def run_line(self, step: Step) -> str:
        """Return the `docker run` command that repeats by hand what a step did."""
        container = step.new or step.old
        spec = required(step.spec)
        return run_line.docker_run_line(
            spec,
            config_file=(container and mounted_config(container)) or self._config_path(spec["name"]),
            secrets_file=self._secrets_path(step.name) if self._secrets else "",
            docker_host=self._settings.docker_host,
        )

    def written_for(self, name: str) -> list[str]:
        """Return the files that are written for a replica."""
        folder = self._settings.config_dir
        copies = os.path.join(folder, "active")
        own = [os.path.join(folder, name + suffix) for suffix in (".env", ".sh")]
        if os.path.isdir(copies):
            own += [os.path.join(copies, entry) for entry in sorted(os.listdir(copies)) if _replica_of(entry) == name]
        return [path for path in own if os.path.lexists(path)]

    def replicas(self) -> set[str]:
        """Return the replicas of this deployment that have files, whether they have a container or not."""
        folder = self._settings.config_dir
        written = [os.path.basename(os.path.splitext(path)[0]) for path in glob.glob(os.path.join(folder, "*.sh"))]
        copies = glob.glob(os.path.join(folder, "active", "*.yaml"))
        written += [_replica_of(os.path.basename(path)) for path in copies]
        return {name for name in written if belongs_to(self._settings.prefix, name)}

    def _config_path(self, name: str) -> str:
        return os.path.join(self._settings.config_dir, f"{name}.yaml")

    def _secrets_path(self, name: str) -> str:
        return os.path.join(self._settings.config_dir, f"{name}.env")

    def _write_secrets(self, name: str) -> None:
        path = self._secrets_path(name)
        if self._secrets:
            self.changed |= write_file(path, run_line.secrets_text(self._secrets), 0o600, variable=VARIABLE)
        elif os.path.exists(path):
            os.unlink(path)


def _replica_of(copy: str) -> str:
    """Return the replica whose configuration a copy is, from the name of its file."""
    return copy.rpartition("-")[0]
