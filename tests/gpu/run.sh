#!/usr/bin/env bash
# Runs our playbooks on a GPU host that host.sh has prepared. usage: run.sh STAGE OUTDIR
# stages: probe, deploy (cold, again, status), settings and point (the memory model against what vLLM reports), faults,
#   taken (the card's memory held by another process)
set -uo pipefail
cd "$(dirname "$(realpath "$0")")/../.."
. /opt/gpufleet-test/environment
out=$2; mkdir -p "$out"
play() { # play NAME PLAYBOOK [ARGUMENT…]: the play's output into OUTDIR/NAME.log, its end and time on the screen
  local name=$1 book=$2 started=$SECONDS; shift 2
  ansible-playbook "playbooks/$book.yml" -i tests/gpu/inventory "$@" >"$out/$name.log" 2>&1
  echo "== $name: exit $?, $((SECONDS - started)) s, $(grep -o 'ok=[0-9]* *changed=[0-9]*' "$out/$name.log" | tail -1)"
}
reported() { # what the plan said and what vLLM says
  python3 - <<'EOF'
import json, re, subprocess
plan = json.load(open("/etc/gpufleet/plan.json"))
log = subprocess.run(["docker", "logs", "vllm-0"], capture_output=True, text=True)
text = log.stdout + log.stderr
found = {name: re.findall(pattern, text) for name, pattern in {
    "weights": r"Model loading took ([\d.]+) GiB", "kv_gib": r"Available KV cache memory: ([\d.]+) GiB",
    "kv_tokens": r"GPU KV cache size: ([\d,]+) tokens"}.items()}
planned = plan["capacity"]
for name, key in (("weights", "weights_gib_per_gpu"), ("kv_gib", "kv_cache_gib_per_gpu"), ("kv_tokens", "kv_cache_tokens")):
    real = float(found[name][-1].replace(",", "")) if found[name] else float("nan")
    print(f"   {name}: plan {planned[key]}, vLLM {real}, {(planned[key] / real - 1) * 100:+.1f} %")
EOF
}
phases() { grep -E '^\[gpu-host\]' "$out/$1.log" | grep -E 'took|serving' | cut -c1-160; }

case $1 in
probe)
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
  ansible gpu-host -i tests/gpu/inventory -m gpufleet.vllm.gpu_info -o -e ansible_python_interpreter=/var/lib/gpufleet/venv/bin/python >"$out/gpu_info.txt" 2>&1
  ANSIBLE_CALLBACK_RESULT_FORMAT=json python3 tests/gpu/compare_gpu_info.py "$out/gpu_info.txt"; echo "exit $?"
  play plan plan -v ;;
deploy)
  play cold deploy; phases cold; reported
  if grep -q '^fatal' "$out/cold.log"; then grep -A60 '^fatal' "$out/cold.log" | cut -c1-400; exit 1; fi
  play again deploy; play status status -v; grep -A3 'replicas serving' "$out/status.log" ;;
point)
  play point deploy -e vllm_max_num_batched_tokens=16384 -e vllm_max_num_seqs=128; reported
  docker logs vllm-0 >"$out/vllm-point.log" 2>&1; nvidia-smi --query-gpu=memory.used,memory.free --format=csv ;;
settings)
  play utilisation deploy -e vllm_gpu_memory_utilization=0.95; phases utilisation; reported
  play batched deploy -e vllm_max_num_batched_tokens=16384; phases batched; reported
  play seqs deploy -e vllm_max_num_seqs=128; phases seqs; reported ;;
faults)
  play too-long deploy -e vllm_max_model_len=10485760; grep -A14 '^fatal' "$out/too-long.log" | cut -c1-300
  play refused deploy -e '{"vllm_extra_config": {"load-format": "dummy", "moe-backend": "cutlass"}}'; grep -A25 '^fatal' "$out/refused.log" | cut -c1-300
  play status-after status -v; grep -A3 'replicas serving' "$out/status-after.log" ;;
taken)
  play teardown teardown
  PYTHONPATH= setsid python3 -c 'import torch, time; x = torch.empty(60 * 2**30, dtype=torch.uint8, device="cuda"); time.sleep(150)' &
  sleep 15; play taken deploy; grep -A14 '^fatal' "$out/taken.log" | cut -c1-300; kill %1 ;;
esac
