# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the configuration files of vLLM servers."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_config
short_description: Write the configuration files of vLLM servers
version_added: 0.1.0
author: gpufleet contributors (@gpufleet)
description:
  - Renders the YAML file that C(vllm serve --config) reads from a Jinja2 template, for one server (O(path)) or, in one
    run, for every replica of a plan (O(directory)).
  - Refuses, naming the key and its right form, whatever vLLM would drop or choke on, which is C(false), null, C("true")
    in quotes, empty lists, misnamed keys and a switch that is both on and off. A nested mapping is written as JSON
    text, which every version understands. An empty configuration gives a file that vLLM accepts.
  - Refuses secrets (C(api-key), C(hf-token)); they reach a server through its environment only.
  - Reads the rendered text back and compares it with what was asked for before anything is written.
  - Replaces each file as a whole, and keeps the text it had as C(<file>.previous). Nothing is written unless all of it
    can be rendered.
options:
  state:
    description:
      - V(absent) removes from O(directory) everything that this collection wrote there, and the folder if that
        leaves it empty.
    type: str
    choices: [present, absent]
    default: present
  path:
    description:
      - File to write, named C(.yaml) or C(.yml), for a single server.
    type: path
  config:
    description:
      - The entries of the file at O(path), keys as vLLM's options are named, such as C(max-num-seqs).
    type: dict
  directory:
    description:
      - Folder for the files of several replicas, C(<directory>/<name>.yaml).
      - A missing folder is made, with mode V(0750).
    type: path
  replicas:
    description:
      - The replicas whose files O(directory) must hold. Keys other than C(name) and C(config) are ignored.
      - Taken from O(plan) when left out.
    type: list
    elements: dict
    suboptions:
      name:
        description:
          - The replica's name.
        type: str
        required: true
      config:
        description:
          - The entries of its file.
        type: dict
        required: true
  plan:
    description:
      - The plan that is to be applied; it must hold no secret. M(gpufleet.vllm.vllm_server) keeps it once its servers
        have answered.
    type: dict
  plan_path:
    description:
      - Where to write the plan, as JSON; it is written nowhere when left out. C(plan.json) in O(directory) is the plan
        of what serves, and no place for one that is only to be applied.
    type: path
  prune:
    description:
      - Remove files in O(directory) that this module wrote for replicas that are no longer wanted, and their
        C(.previous). Other files stay.
    type: bool
    default: false
  template:
    description:
      - Path on the host of a Jinja2 template for the part below the header, or the template's own text.
      - It has the variables C(config), C(replica) and C(model) and the filter C(yaml_scalar). What it renders must read
        back as the wanted entries; it can order them and add comments.
      - Mark a template given as text as C(!unsafe), or Ansible will render it first.
    type: str
    default: ""
  mode:
    description:
      - Mode of the files.
    type: raw
    default: "0640"
  owner:
    description:
      - Owner of the files.
    type: str
  group:
    description:
      - Group of the files.
    type: str
  lock_timeout:
    description:
      - Seconds to wait for another run that works on this host, such as one whose play was interrupted. It reads
        O(directory) until its servers are ready, so nothing is written meanwhile.
    type: int
    default: 0
extends_documentation_fragment:
  - gpufleet.vllm.common.changes
requirements:
  - Jinja2
  - PyYAML
"""

EXAMPLES = r"""
- name: Write every replica's configuration
  gpufleet.vllm.vllm_config:
    directory: /etc/gpufleet
    plan: "{{ vllm_plan_result.plan }}"
    prune: true

- name: Write one file
  gpufleet.vllm.vllm_config:
    path: /etc/gpufleet/vllm-0.yaml
    config:
      kv-cache-dtype: fp8
      async-scheduling: true
      no-enable-prefix-caching: true
      max-num-batched-tokens: 8192
      compilation-config:
        pass_config: {fuse_allreduce_rms: true, eliminate_noops: true}

- name: Write it from a template of one's own
  gpufleet.vllm.vllm_config:
    path: /etc/gpufleet/vllm-0.yaml
    config:
      max-model-len: 8192
    template: !unsafe |
      # Reviewed by the platform team.
      {% for key, value in config.items() %}
      {{ key }}: {{ value | yaml_scalar }}
      {% endfor %}
"""

RETURN = r"""
files:
  description: Every file concerned, in order.
  returned: success
  type: list
  elements: dict
  contains:
    path:
      description: The file.
      type: str
    state:
      description:
        - V(created), V(changed), V(unchanged) or V(removed). V(attributes) when only its mode or its owner changed.
      type: str
    previous:
      description: Where the text that was replaced is kept; empty if none was.
      type: str
  sample: [{"path": "/etc/gpufleet/vllm-0.yaml", "state": "changed", "previous": "/etc/gpufleet/vllm-0.yaml.previous"}]
error:
  description:
    - The failure in parts, C(name), C(message), C(remedy), C(evidence) and C(details).
    - Names are V(config-invalid), V(config-secret), V(template-missing), V(template-invalid), V(path-invalid),
      V(replica-invalid), V(busy) and V(write-failed).
  returned: failure
  type: dict
"""

import contextlib
import os
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils.common.documents import ReplicaConfig
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.errors import GpufleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.files import write_failed, write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.lock import host_lock
from ansible_collections.gpufleet.vllm.plugins.module_utils.common.module import GpufleetModule
from ansible_collections.gpufleet.vllm.plugins.module_utils.gpus import access_record
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers import config_file
from ansible_collections.gpufleet.vllm.plugins.module_utils.servers.config_file import WantedFile

ARGUMENTS: dict[str, Any] = {
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "path": {"type": "path"},
    "config": {"type": "dict"},
    "directory": {"type": "path"},
    "replicas": {
        "type": "list",
        "elements": "dict",
        "options": {"name": {"type": "str", "required": True}, "config": {"type": "dict", "required": True}},
    },
    "plan": {"type": "dict"},
    "plan_path": {"type": "path"},
    "prune": {"type": "bool", "default": False},
    "template": {"type": "str", "default": ""},
    "mode": {"type": "raw", "default": "0640"},
    "owner": {"type": "str"},
    "group": {"type": "str"},
    "lock_timeout": {"type": "int", "default": 0},
}
PREVIOUS = ".previous"
PLAN_NAMES = ("plan.json", "plan.unfinished.json")  # of vllm_server, as is the lock
LOCK_NAME = ".lock"
VARIABLE = "vllm_config_dir"  # moves the folder elsewhere


class ConfigFiles:
    """Writes the wanted files and removes the unwanted, collecting what the module returns."""

    def __init__(self, module: GpufleetModule) -> None:
        self.module = module
        self.changed = False
        self.files: list[dict[str, str]] = []
        self.diffs: list[dict[str, Any]] = []

    def ensure_directory(self, path: str) -> None:
        """Make a missing folder, with mode 0750."""
        if os.path.isdir(path):
            return
        self.changed = True
        if self.module.check_mode:
            return
        try:
            os.makedirs(path, mode=0o750)
        except OSError as error:
            raise write_failed(path, error, VARIABLE) from error
        self._set_attributes(path, mode="0750")

    def write(self, wanted: WantedFile) -> None:
        """Write the file with its text, mode and owner, and keep the text that it replaces."""
        before = read_text(wanted.path)
        state, previous = "unchanged", ""
        if before != wanted.text:
            state = "created" if before is None else "changed"
            self._diff(wanted.path, before or "", wanted.text)
            if before is not None:
                previous = wanted.path + PREVIOUS
                self._replace(previous, before)
            self._replace(wanted.path, wanted.text)
        elif self._set_attributes(wanted.path, mode=self.module.params["mode"]):
            state = "attributes"
        self._note(wanted.path, state, previous)

    def remove(self, path: str) -> None:
        """Remove a file of ours and the text kept beside it."""
        self._diff(path, read_text(path) or "", "")
        for name in (path, path + PREVIOUS):
            if os.path.lexists(name) and not self.module.check_mode:
                try:
                    os.unlink(name)
                except OSError as error:
                    raise write_failed(name, error, VARIABLE) from error
        self._note(path, "removed", "")

    def result(self) -> dict[str, Any]:
        """Return the module's result."""
        result: dict[str, Any] = {"changed": self.changed, "files": self.files}
        if self.module._diff:
            result["diff"] = self.diffs
        return result

    def _note(self, path: str, state: str, previous: str) -> None:
        self.changed = self.changed or state != "unchanged"
        self.files.append({"path": path, "state": state, "previous": previous})

    def _diff(self, path: str, before: str, after: str) -> None:
        self.diffs.append({"before": before, "after": after, "before_header": path, "after_header": path})

    def _replace(self, path: str, text: str) -> None:
        if self.module.check_mode:
            return
        write_file(path, text, 0o600, keep=True, variable=VARIABLE)
        self._set_attributes(path, mode=self.module.params["mode"])

    def _set_attributes(self, path: str, mode: Any) -> bool:
        attributes = self.module.load_file_common_arguments({**self.module.params, "mode": mode}, path=path)
        difference: dict[str, Any] = {}
        changed: bool = self.module.set_fs_attributes_if_different(attributes, False, difference)
        if changed and self.module.check_mode and difference:
            self.diffs.append(difference)
        return changed


def read_text(path: str) -> str | None:
    """Return a file's text, or None when there is no such file."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            return stream.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise write_failed(path, error, VARIABLE) from error


def load_template(template: str) -> tuple[str, str]:
    """Return the text of the template and how to call it in messages; two empty texts for the default."""
    if not template:
        return "", "default"
    if config_file.is_inline_template(template):
        return template, "given as text"
    try:
        with open(template, encoding="utf-8") as stream:
            return stream.read(), template
    except (OSError, UnicodeDecodeError) as error:
        raise GpufleetError(
            f"template: {template} cannot be read on the host.",
            name="template-missing",
            remedy="Copy the template to that path on the host, or give its text.",
            evidence=str(error),
        ) from error


def wanted_files(params: dict[str, Any]) -> list[WantedFile]:
    """Render every file that the options ask for."""
    template, template_name = load_template(params["template"])
    plan = params["plan"]
    model = ((plan or {}).get("model_source") or {}).get("argument", "")
    wanted = []
    if params["path"]:
        config_file.check_path(params["path"])
        text = config_file.render_config(params["config"], model=model, template=template, template_name=template_name)
        wanted.append(WantedFile(params["path"], text))
    for replica in wanted_replicas(params):
        text = config_file.render_config(
            replica["config"],
            replica=replica["name"],
            model=model,
            template=template,
            template_name=template_name,
        )
        wanted.append(WantedFile(config_file.config_path(params["directory"], replica["name"]), text))
    if plan is not None:
        text = config_file.render_plan(plan)  # which refuses secrets, whether it is written or not
        wanted += [WantedFile(path, text) for path in [params["plan_path"]] if path]
    return wanted


def wanted_replicas(params: dict[str, Any]) -> list[ReplicaConfig]:
    """Return the replicas given, or those of the plan; none without a directory."""
    if not params["directory"]:
        return []
    replicas = params["replicas"]
    if replicas is None:
        replicas = (params["plan"] or {}).get("replicas") or []
    config_file.check_replicas(replicas)
    return list(replicas)


def unwanted_files(directory: str, wanted: list[WantedFile]) -> list[str]:
    """Return the configuration files in the folder that this module wrote and that are no longer wanted."""
    keep = {file.path for file in wanted}
    if not os.path.isdir(directory):
        return []
    paths = (os.path.join(directory, name) for name in sorted(os.listdir(directory)) if name.endswith(".yaml"))
    return [path for path in paths if path not in keep and (read_text(path) or "").startswith(config_file.MARK)]


def remove_all(module: GpufleetModule) -> dict[str, Any]:
    """Remove what this collection wrote into the folder, then the folder if it is empty."""
    directory = module.params["directory"]
    files = ConfigFiles(module)
    paths = unwanted_files(directory, [])
    paths += [os.path.join(directory, name) for name in (*PLAN_NAMES, access_record.FILE_NAME, LOCK_NAME)]
    for path in paths:
        if os.path.lexists(path) or os.path.lexists(path + PREVIOUS):
            files.remove(path)
    if not module.check_mode:
        with contextlib.suppress(OSError):
            os.rmdir(directory)
    return files.result()


def work(module: GpufleetModule) -> dict[str, Any]:
    """Write the files, and return the module's result."""
    params = module.params
    if params["state"] == "absent":
        return remove_all(module)
    wanted = wanted_files(params)
    unwanted = unwanted_files(params["directory"], wanted) if params["prune"] and params["directory"] else []
    files = ConfigFiles(module)
    for directory in sorted({os.path.dirname(file.path) for file in wanted}):
        files.ensure_directory(directory)
    for file in wanted:
        files.write(file)
    for path in unwanted:
        files.remove(path)
    return files.result()


def locked_work(module: GpufleetModule) -> dict[str, Any]:
    """Do the work while holding the lock of vllm_server, where there may be a run of that.

    Raises:
        GpufleetError: C(busy).
    """
    lock = os.path.join(module.params["directory"] or "", LOCK_NAME)
    # Without the file no vllm_server has ever worked here.
    if module.check_mode or module.params["state"] == "absent" or not os.path.exists(lock):
        return work(module)
    with host_lock(lock, "vllm_config", timeout=module.params["lock_timeout"]):
        return work(module)


def main() -> None:
    """Run the module."""
    module = GpufleetModule(
        argument_spec=ARGUMENTS,
        supports_check_mode=True,
        required_one_of=[("path", "directory", "plan_path")],
        mutually_exclusive=[("path", "directory")],
        required_together=[("path", "config")],
        required_if=[("state", "absent", ["directory"])],
        required_by={"replicas": ["directory"], "plan_path": ["plan"]},
    )
    module.require("jinja2", "yaml")
    module.run(lambda: locked_work(module))


if __name__ == "__main__":
    main()
