#!/usr/bin/env bash
# Packs everything that a Hopper host with Python 3.12, PyTorch 2.11 (CUDA 13) and no network needs to run the
# collection's playbooks on real vLLM 0.26.0: vLLM, a Docker engine, ansible-core, the modules' libraries and lm_eval.
# usage: pack.sh OUTDIR [PART]   writes OUTDIR/vllm.00, .01, … (52 MiB each at most), OUTDIR/tools.tar.xz (53 MiB) and
#        OUTDIR/verify.tar.xz (lm_eval, 35 MiB); PART is vllm, tools or verify for that one alone
# On a Debian or Ubuntu machine with apt, pip, unzip and xz. host.sh unpacks it there.
set -euo pipefail
out=$(realpath -m "$1"); only=${2:-all}; here=$(dirname "$(realpath "$0")")
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
mkdir -p "$out" "$work"/{wheels,site,tools/wheels,tools/engine,verify/wheels,debs}
platforms=(); for n in $(seq 17 39); do platforms+=(--platform "manylinux_2_${n}_x86_64"); done
platforms+=(--platform manylinux1_x86_64 --platform manylinux2010_x86_64 --platform manylinux2014_x86_64)
fetch() {
  python3 -m pip download -q --only-binary=:all: --python-version 3.12 --implementation cp \
    --abi cp312 --abi abi3 --abi none "${platforms[@]}" "$@"
}

wanted() { [ "$only" = all ] || [ "$only" = "$1" ]; }

if wanted tools; then
  fetch -d "$work/tools/wheels" 'ansible-core==2.19.*' docker==7.1.0 requests==2.32.5 \
    nvidia-ml-py==13.580.126 Jinja2==3.1.6 PyYAML==6.0.3
  (cd "$work/debs" && apt-get download -q docker.io containerd runc libdevmapper1.02.1 tini)
  for deb in "$work"/debs/*.deb; do dpkg -x "$deb" "$work/tools/engine"; done
  rm -rf "$work"/tools/engine/{etc,lib/systemd} \
    "$work"/tools/engine/usr/{share,sbin/ovrouter,bin/{dnet,ctr,containerd-stress,containerd-shim,containerd-shim-runc-v1}}
  tar c -C "$work/tools" . | xz -T0 -6 >"$out/tools.tar.xz"
fi
if wanted verify; then
  # PyTorch, pyarrow, pandas and the like are on the host. Some of lm_eval's needs come as sources only.
  grep -vE '^(rouge-score|sqlitedict|word2number)=' "$here/lm-eval-wheels.txt" >"$work/lm-eval-wheels.txt"
  fetch --no-deps -d "$work/verify/wheels" -r "$work/lm-eval-wheels.txt"
  python3 -m pip wheel -q --no-deps -w "$work/verify/wheels" \
    $(grep -E '^(rouge-score|sqlitedict|word2number)=' "$here/lm-eval-wheels.txt")
  tar c -C "$work/verify" . | xz -T0 -1 >"$out/verify.tar.xz"
fi
if wanted vllm; then
  fetch --no-deps -d "$work/wheels" -r "$here/vllm-0.26-wheels.txt"
  # left out: FlashAttention 2 (Hopper uses 3), the Rust front end, Blackwell's kernels, other Pythons' DeepGEMM
  for wheel in "$work"/wheels/*.whl; do
    unzip -qo "$wheel" -d "$work/site" -x '*/_vllm_fa2_C.abi3.so' 'vllm/vllm-rs' 'vllm/third_party/fmha_sm100/*' \
      'vllm/third_party/deep_gemm/_C.cpython-31[0134]*' 'pycountry/locales/*' 2>/dev/null || [ $? -eq 11 ]
  done
  tar c -C "$work/site" . | xz -T0 -3 | split -b 52M -d - "$out/vllm."
fi
ls -l "$out"
