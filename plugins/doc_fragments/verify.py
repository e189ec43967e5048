# Copyright: gpufleet contributors
# GNU General Public License v3.0 or later (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Options that the modules which verify a server share."""

from __future__ import annotations


class ModuleDocFragment:
    """Documentation fragment C(gpufleet.vllm.verify)."""

    DOCUMENTATION = r"""
options:
  url:
    description:
      - Base address of the server, as seen from the host. A trailing C(/v1) is ignored.
    type: str
    default: http://127.0.0.1:8000
  name:
    description:
      - How the server is called in messages and in the names of containers, such as its replica's name.
    type: str
    default: vllm
  model:
    description:
      - Model to ask, by the name under which it is served. The first one that the server names when left out.
    type: str
    default: ""
  api_key:
    description:
      - Key of the server. It reaches the container as the environment variable C(OPENAI_API_KEY).
    type: str
    default: ""
  hf_token:
    description:
      - Token of the Hugging Face hub, for tokenizers and data sets that need one.
    type: str
    default: ""
  image:
    description:
      - Image with vLLM that is on the host. The program runs in a container of it that is gone afterwards.
    type: str
    required: true
  model_source:
    description:
      - The plan's C(model_source). Its folder, if it has one, is mounted for the tokenizer.
    type: dict
    default: {}
  hf_home:
    description:
      - Folder of the host with the Hugging Face cache. Empty mounts none.
    type: path
    default: /var/lib/gpufleet/huggingface
  ca_bundle:
    description:
      - File of the host with the certificate authorities to trust. Empty for the image's own.
    type: str
    default: ""
  ca_path:
    description:
      - CA bundle of the host to check the server's own certificate with. Empty for the libraries' own.
    type: path
  volumes:
    description:
      - Further mounts of the container, as C(docker run --volume) takes them, such as those of the server.
      - One with the target of a mount of ours replaces it.
    type: list
    elements: str
    default: []
  environment:
    description:
      - Further environment variables of the container, such as those of the server.
    type: dict
    default: {}
  secrets:
    description:
      - Environment variables of the container that are never shown. They win over those of O(environment).
      - Whatever these variables say of proxies, the server is asked without one.
    type: dict
    default: {}
  work_dir:
    description:
      - Folder of the host to work in. What M(gpufleet.vllm.vllm_accuracy) installs stays there, results do not.
    type: path
    default: /var/lib/gpufleet/verify
  timeout:
    description:
      - Seconds after which a run is ended.
    type: int
    default: 7200
attributes:
  check_mode:
    support: none
    description: A measurement cannot be foretold; the task is skipped in check mode.
  diff_mode:
    support: N/A
    description: Nothing of a host's configuration is changed.
  idempotent:
    support: N/A
    description: A measurement is made anew each time.
requirements:
  - docker >= 7.1 (Python library)
  - requests
"""
