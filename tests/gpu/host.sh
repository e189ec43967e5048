#!/usr/bin/env bash
# On the GPU host: unpacks what pack.sh made, starts a Docker engine, makes the image, and leaves a shell's environment
# in /opt/gpufleet-test/environment. usage: host.sh PACKED_DIR
# The image is one of empty folders; the host's Python, PyTorch and vLLM are mounted over it (inventory/hosts.yml).
set -euo pipefail
packed=$(realpath "$1"); here=$(dirname "$(realpath "$0")"); root=/opt/gpufleet-test
mkdir -p "$root"/{site,tools,verify,collections/ansible_collections/gpufleet,models,image}
cat "$packed"/vllm.* | xz -dc -T0 | tar x -C "$root/site"
xz -dc -T0 "$packed/tools.tar.xz" | tar x -C "$root/tools"
[ ! -f "$packed/verify.tar.xz" ] || xz -dc -T0 "$packed/verify.tar.xz" | tar x -C "$root/verify"
ln -sfn "$(realpath "$here/../..")" "$root/collections/ansible_collections/gpufleet/vllm"
# What is mounted read-only cannot be byte-compiled later, and the imports are most of a server's start.
python3 -m compileall -q -j 0 "$root/site" >"$root/compileall.log" 2>&1 || true
cp -r "$here/../data/scout-shaped" "$root/models/"
python3 "$here/text_tokenizer.py" "$root/models/scout-shaped"
# Of Triton's MoE kernels: below /opt, which the containers see, for VLLM_TUNED_CONFIG_FOLDER.
cp -r "$here/tuned" "$root/"

python3 -m pip install -q --no-index --find-links "$root/tools/wheels" --target "$root/ansible" ansible-core
python3 -m venv --without-pip /var/lib/gpufleet/venv
python3 -m pip --python /var/lib/gpufleet/venv/bin/python install -q --no-index --find-links "$root/tools/wheels" \
  docker==7.1.0 requests==2.32.5 nvidia-ml-py==13.580.126 Jinja2==3.1.6 PyYAML==6.0.3

driver=$(dirname "$(find / -xdev -name 'libcuda.so.1' -not -path '*/stubs/*' 2>/dev/null | head -1 || true)")
[ "$driver" != . ] || driver=$(dirname "$(find /usr/local/nvidia -name libcuda.so.1 | head -1)")
cat >"$root/environment" <<EOF
export PATH=$root/ansible/bin:$root/tools/engine/usr/sbin:$root/tools/engine/usr/bin:\$PATH
export PYTHONPATH=$root/ansible LD_LIBRARY_PATH=$root/tools/engine/lib/x86_64-linux-gnu:$root/tools/engine/usr/lib/x86_64-linux-gnu:$driver
export ANSIBLE_COLLECTIONS_PATH=$root/collections ANSIBLE_CALLBACK_RESULT_FORMAT=yaml PYTHONUNBUFFERED=1
export DOCKER_HOST=unix:///run/gpufleet-test.sock DRIVER_FOLDER=$driver GPU_HOST_PYTHON=$(command -v python3)
EOF
. "$root/environment"

docker info >/dev/null 2>&1 || setsid dockerd --iptables=false --bridge=none --data-root /var/lib/gpufleet-test-engine --host "$DOCKER_HOST" \
  --pidfile /run/gpufleet-test.pid >"$root/dockerd.log" 2>&1 </dev/null &
for _ in $(seq 60); do docker info >/dev/null 2>&1 && break; sleep 0.5; done
docker info --format '{{.ServerVersion}} {{.Driver}} cgroup {{.CgroupVersion}}'

cd "$root/image"
rm -rf "$root"/image/*; mkdir -p usr opt etc tmp proc sys dev root run var/tmp srv/site srv/bin
for name in bin lib lib64; do ln -sfn "usr/$name" "$name"; done
# A folder of its own: docker run --init mounts its program there, which a read-only /usr would not let it.
mkdir -p sbin; for name in ldconfig ldconfig.real; do ln -sfn "../usr/sbin/$name" "sbin/$name"; done
cp /etc/ld.so.cache etc/
printf 'root:x:0:0:root:/root:/bin/sh\n' >etc/passwd; printf 'root:x:0:\n' >etc/group
printf '#!/bin/sh\nexec %s -m vllm.entrypoints.cli.main "$@"\n' "$(command -v python3)" >srv/bin/vllm
chmod 755 srv/bin/vllm; chmod 1777 tmp var/tmp
tar c . | docker import -c "ENV PATH=/srv/bin:$(dirname "$(command -v python3)"):/usr/local/cuda/bin:/usr/bin:/bin" \
  -c 'ENTRYPOINT ["vllm","serve"]' - gpufleet/host-vllm:0.26.0
