#!/usr/bin/env bash
# Runs our playbooks on a GPU host that host.sh has prepared; README.md tells the stages, each of which ends within nine
# minutes on one or two H200. usage: run.sh STAGE OUTDIR [ARGUMENT…]
# Keep OUTDIR from stage to stage: later ones compare with what earlier ones left there.
set -uo pipefail
stage=$1 out=$(realpath -m "$2"); shift 2; mkdir -p "$out"
cd "$(dirname "$(realpath "$0")")/../.."
. /opt/gpufleet-test/environment
cards=$(nvidia-smi --list-gpus | wc -l)
tests=/opt/gpufleet-test
# The load: the recipe's lengths, the same number of prompts whatever the concurrency, and what a user would call good.
load='{"vllm_benchmark_num_prompts": 512, "vllm_benchmark_goodput": {"ttft": 10000, "tpot": 60}}'

play() { # play NAME PLAYBOOK [ARGUMENT…]: the play's output into OUTDIR/NAME.log, its end and time on the screen
  local name=$1 book=$2 started=$SECONDS status; shift 2
  ansible-playbook "playbooks/$book.yml" -i tests/gpu/inventory "$@" >"$out/$name.log" 2>&1; status=$?
  echo "== $name: exit $status, $((SECONDS - started)) s, $(grep -o 'ok=[0-9]* *changed=[0-9]*' "$out/$name.log" | tail -1)"
  [ $status -eq 0 ] || grep -E -A25 '^(fatal|\[ERROR\])' "$out/$name.log" | cut -c1-400 | head -40
  return $status
}
verify() { # verify NAME TAGS [ARGUMENT…]: verify.yml with its report in OUTDIR/NAME
  local name=$1 tags=$2; shift 2
  play "verify-$name" verify --tags "$tags" -e "$load" -e "vllm_report_dir=$out/$name" "$@"
}
compare() { # compare NAME…: the measurements of those names side by side, as far as they are there
  local reports=()
  for name in "$@"; do [ ! -f "$out/$name/report.json" ] || reports+=("$name=$out/$name/report.json"); done
  python3 tests/gpu/compare_reports.py "${reports[@]}" | tee "$out/compare-$stage.txt"
}
by_url() { # by_url NAME PORT CONCURRENCY PROMPTS [TOKENS]: measure the server at that port, whatever runs beside it
  verify "$1" performance -e "{\"vllm_url\": \"http://127.0.0.1:$2\", \"vllm_verify_image\": \"$(planned "plan['image']['tag']")\", \"vllm_benchmark_tokenizer\": \"$tests/models/scout-shaped\", \"vllm_verify_dir\": \"/var/lib/gpufleet/verify-$2\", \"vllm_benchmark_concurrency\": [$3], \"vllm_benchmark_num_prompts\": $4, \"vllm_benchmark_output_len\": ${5:-1024}}"
}
with_flags() { # with_flags FLAGS [ENVIRONMENT]: variables that add engine flags and environment variables to the inventory's
  printf '{"more_flags": %s, "more_environment": %s}' "$1" "${2:-{\}}"
}
until_running() { # until_running SHARE CONCURRENCY [PID]: wait until that share of so many requests runs, or the process ends
  for _ in $(seq 240); do
    [ -z "${3:-}" ] || kill -0 "$3" || return 1
    curl -s http://127.0.0.1:8000/metrics | awk -v all="$2" -v share="$1" '/^vllm:num_requests_running/ {n += $NF} END {exit !(n >= share * all)}' && break
    sleep 1
  done
}
traced() { # traced: a few steps of the server in PyTorch's profiler; max_iterations in its profiler-config ends it, stop_profile arms it anew
  curl -s -X POST http://127.0.0.1:8000/start_profile; sleep 6; curl -s -X POST http://127.0.0.1:8000/stop_profile
}
sampled() { # sampled NAME CONCURRENCY: once that many requests run, what keeps GPUs and processors busy, and in which functions
  until_running 0.9 "$2"; sleep 15
  nvidia-smi --query-gpu=index,power.draw,clocks.sm,utilization.gpu,memory.used --format=csv | tee "$out/gpus-$1.txt"
  python3 tests/gpu/busy.py 10 | tee "$out/busy-$1.txt"
  command -v py-spy >/dev/null || return 0
  for pid in $(grep -oE '[0-9]+ [^ ]*(VLLM|python3|vllm)' "$out/busy-$1.txt" | cut -d' ' -f1 | head -6); do
    py-spy record --pid "$pid" --duration 8 --rate 100 --format raw --threads --output "$out/stacks-$1-$pid.txt" >/dev/null 2>&1 &
  done
  wait
}
alone() { # alone GPU: variables of a deployment of its own on that GPU
  printf '{"vllm_gpu_selection": [%d], "vllm_container_prefix": "gpu%d", "vllm_port": %d, "vllm_config_dir": "%s", "vllm_verify_dir": "%s"}' \
    "$1" "$1" $((8100 + $1)) "/etc/gpufleet-gpu$1" "/var/lib/gpufleet/verify-gpu$1"
}
planned() { # planned EXPRESSION [FOLDER]: something of the plan that was applied
  python3 -c "import json, sys; plan = json.load(open(sys.argv[2] + '/plan.json')); print(eval(sys.argv[1]))" "$1" "${2:-/etc/gpufleet}"
}
reported() { # what the plan said and what vLLM says
  python3 tests/gpu/compare_memory.py "${1:-/etc/gpufleet}"
}
phases() { grep -E '^\[gpu-host\]' "$out/$1.log" | grep -E 'took|serving' | cut -c1-160; }
chosen() { # what vLLM chose, and what its CUDA graphs and activations take
  docker logs vllm-0 2>&1 | grep -oE 'Using ([A-Z_]+ attention backend|[A-Z_]+ Fp8 MoE backend|FlashAttention version [0-9]+|default MoE config|configuration from [^ ]*)|FlashInfer resolved query dtypes.*|Selected [A-Za-z0-9]+ for|[A-Z_]+ is not supported with [A-Za-z]+|Profiling CUDA graph memory.*|CUDA graph pool memory: [^,]*, [^,]*|GPU KV cache size.*|Graph capturing finished.*|[0-9.]+ GiB for peak activation, [0-9.]+ GiB for non-torch memory' | sort -u | sed 's/^/   /'
}
started() { # started NAME PROFILE [FLAGS [ENVIRONMENT [ARGUMENT…]]]: deploy under a profile, with flags and variables added
  local name=$1 profile=$2 more; more=$(with_flags "${3:-{\}}" "${4:-}"); shift $(($# < 4 ? $# : 4))
  # Not checked beforehand, in a container of its own: a flag that vLLM does not have shows at once all the same.
  play "$name" deploy -e "vllm_profile=$profile" -e "$more" -e '{"vllm_check_config": false}' "$@" || { docker logs vllm-0 >"$out/$name-vllm.log" 2>&1; return 1; }
  docker logs vllm-0 >"$out/$name-vllm.log" 2>&1
  phases "$name"; reported; chosen
}
measured() { # measured NAME WAVES [TOKENS]: what the whole host gives, each replica at the concurrency that the plan holds
  local name=$1 waves=$2 replicas held sampler running=()
  replicas=$(planned "len(plan['replicas'])") held=$(planned "plan['capacity']['max_concurrent_requests']")
  sampled "$name" "$held" & sampler=$!
  for ((i = 0; i < replicas; i++)); do by_url "$name-$i" $((8000 + i)) "$held" $((waves * held)) "${3:-1024}" & running+=($!); done
  wait "${running[@]}"; kill $sampler 2>/dev/null; wait
  docker logs vllm-0 >"$out/$name-vllm.log" 2>&1
  grep -oE 'prompt throughput: .*Waiting: [0-9]+' "$out/$name-vllm.log" | tail -25
  compare $(cd "$out" && ls -d -- *-[0-9] 2>/dev/null)
}
in_image() { # in_image ARGUMENT…: Python in the image, with the GPUs, the deployment's mounts and its caches
  docker run --rm --network host --ipc host --entrypoint python3 $(ls /dev/nvidia[0-9]* /dev/nvidiactl /dev/nvidia-uvm | sed 's/^/--device /') \
    -v /usr:/usr:ro -v /opt:/opt:ro -v /etc/alternatives:/etc/alternatives:ro -v $tests/site:/srv/site:ro \
    -v /var/lib/gpufleet/cache/flashinfer:/root/.cache/flashinfer -v /var/lib/gpufleet/cache/triton:/root/.triton \
    -e PYTHONPATH=/srv/site -e LD_LIBRARY_PATH="$DRIVER_FOLDER" -e TRITON_LIBCUDA_PATH="$DRIVER_FOLDER" gpufleet/host-vllm:0.26.0 "$@"
}
seen() { # seen CONTAINER: the GPUs that CUDA and NVML show in a container
  docker exec "$1" python3 -c 'import torch
print("   CUDA", torch.cuda.device_count(), *("GPU-" + str(torch.cuda.get_device_properties(i).uuid).removeprefix("GPU-") for i in range(torch.cuda.device_count())))'
  docker exec "$1" "$(command -v nvidia-smi)" --list-gpus | sed 's/^/   NVML /'
}
sees() { # sees CONTAINER NUMBER: it has exactly the GPUs of the plan, and so many
  local planned found
  planned=$(planned "' '.join(sorted(next(r for r in plan['replicas'] if r['name'] == '$1')['gpu_uuids']))")
  found=$(seen "$1"); echo "$1, planned $planned"; echo "$found"
  found=$(grep NVML <<<"$found" | grep -o 'GPU-[0-9a-f-]*' | sort | xargs)
  [ "$found" = "$planned" ] && [ "$(wc -w <<<"$found")" = "$2" ] && echo "   as planned" || { echo "   NOT as planned"; return 1; }
}
load() { # load CONTAINER PORT NAME ARGUMENT…: vllm bench serve, as fast as it can be sent
  docker exec "$1" vllm bench serve --backend vllm --base-url "http://127.0.0.1:$2" --model scout-shaped --tokenizer /models/scout-shaped \
    --dataset-name random --ignore-eos "${@:4}" >"$out/load-$1-$3.txt" 2>&1
  echo "   $1 $3: exit $?, $(grep -E '^(Successful|Failed|Output token throughput)' "$out/load-$1-$3.txt" | xargs)"
}
survives() { # survives NAME CONTAINER PORT GPU: long prompts in full batches beside as many requests as may run; then sampling that no start-up measures
  local name=$1 server=$2 port=$3 watch follower log
  for part in plain sampled; do
    # The log is followed: a server that dies says so once for each request, and what it died of rotates away.
    log=$out/$name-$part-vllm.log; docker logs --follow --since 1s "$server" >"$log" 2>&1 & follower=$!
    nvidia-smi -i "$4" --query-gpu=memory.free --format=csv,noheader,nounits -lms 250 >"$out/$name-$part-free.txt" & watch=$!
    if [ $part = plain ]; then
      load "$server" "$port" long --random-input-len 7936 --random-output-len 96 --num-prompts 48 &
      load "$server" "$port" many --random-input-len 128 --random-output-len 48 --num-prompts 1300 --max-concurrency 1100; wait $!
    else
      load "$server" "$port" sampled --random-input-len 128 --random-output-len 32 --num-prompts 1100 --extra-body \
        '{"temperature": 0.8, "top_p": 0.9, "top_k": 50, "min_p": 0.01, "frequency_penalty": 0.5, "repetition_penalty": 1.1, "logprobs": 5, "allowed_token_ids": [64, 65, 66, 67, 68, 69]}'
    fi
    kill $watch $follower; truncate -s '<30M' "$log"
    echo "   $name, $part: $(docker inspect -f '{{.State.Status}}, {{.RestartCount}} restarts' "$server"), least free $(sort -n "$out/$name-$part-free.txt" | head -1) MiB, $(grep -ci 'out of memory' "$log") lines of memory exhausted, most running $(grep -oE 'Running: [0-9]+' "$log" | cut -d' ' -f2 | sort -n | tail -1)"
  done
}
stress() { # stress GPU UTILISATION: deploy so on that GPU alone, and see whether it survives
  local name="u$2-gpu$1" own; own=$(alone "$1")
  play "$name" deploy -e "$own" -e "vllm_gpu_memory_utilization=$2" -e '{"vllm_check_config": false}' || { docker logs "gpu$1-0" >"$out/$name-vllm.log" 2>&1; return; }
  survives "$name" "gpu$1-0" $((8100 + $1)) "$1"
}

case $stage in
probe)
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv
  nvidia-smi topo -m 2>/dev/null | head -6
  ansible gpu-host -i tests/gpu/inventory -m gpufleet.vllm.gpu_info -o -e ansible_python_interpreter=/var/lib/gpufleet/venv/bin/python >"$out/gpu_info.txt" 2>&1
  ANSIBLE_CALLBACK_RESULT_FORMAT=json python3 tests/gpu/compare_gpu_info.py "$out/gpu_info.txt"; echo "exit $?"
  play plan plan -v ;;
deploy)
  play cold deploy || exit 1
  phases cold; reported
  play again deploy; play status status -v; grep -A3 'replicas serving' "$out/status.log" ;;
benchmark)
  play recipe deploy || exit 1
  phases recipe; reported | tee "$out/recipe-memory.txt"
  held=$(planned "plan['capacity']['max_concurrent_requests']"); echo "the plan holds $held requests at once"
  if [ "$(planned "len(plan['replicas'])")" -gt 1 ]; then # at once, one replica each
    by_url recipe-plan 8000 "$held" 512 & by_url recipe-512 8001 512 512 & wait
  else
    verify recipe-plan performance
    verify recipe-512 performance -e '{"vllm_benchmark_concurrency": [512]}'
  fi
  docker logs vllm-0 >"$out/recipe-vllm.log" 2>&1
  compare recipe-plan recipe-512 ;;
advised) # the same 512 requests at once, at a server that takes what the plan says and lets the others wait
  held=$(planned "plan['capacity']['max_concurrent_requests']")
  play advised deploy -e "vllm_max_num_seqs=$held" || exit 1
  phases advised; reported
  verify advised-512 performance -e '{"vllm_benchmark_concurrency": [512]}'
  compare recipe-plan recipe-512 advised-512 ;;
throughput) # NAME PROFILE WAVES [FLAGS [ENVIRONMENT [TOKENS]]]
  started "$1" "$2" "${4:-{\}}" "${5:-}" || exit 1
  for server in $(planned "' '.join(r['name'] for r in plan['replicas'])"); do
    sees "$server" "$(planned "plan['replicas'][0]['tensor_parallel_size']")"
  done
  measured "$1" "$3" "${6:-1024}" ;;
start) started "$@" ;; # NAME PROFILE [FLAGS [ENVIRONMENT [ARGUMENT…]]]
load) measured "$@" ;; # NAME WAVES [TOKENS]: at the servers that are there
new-host) # NAME PROFILE [FLAGS [ENVIRONMENT [ARGUMENT…]]]: as a host starts that got nothing of an equal one but its compile caches
  play teardown teardown
  tar c -C /var/lib/gpufleet cache >"$tests/cache.tar"
  find /var/lib/gpufleet -mindepth 1 -maxdepth 1 ! -name venv -exec rm -rf {} +; rm -rf /etc/gpufleet
  tar x -C /var/lib/gpufleet <"$tests/cache.tar"; du -sm /var/lib/gpufleet/cache/* | sed 's/^/   MiB: /'; rm "$tests/cache.tar"
  sync; echo 3 >/proc/sys/vm/drop_caches # what the kernel remembers of files, the image's among them
  started "$@" ;;
latency) # NAME [CONCURRENCY…]: how fast single answers come, from the server that is there
  name=$1; shift; [ $# -gt 0 ] || set -- 1 8 32
  verify "$name-latency" performance -e "{\"vllm_benchmark_concurrency\": [$(IFS=,; echo "$*")], \"vllm_benchmark_num_prompts\": 0, \"vllm_benchmark_output_len\": 160}"
  python3 tests/gpu/compare_reports.py "$name=$out/$name-latency/report.json" | tee "$out/latency-$name.txt" ;;
survive) survives "$1" vllm-0 8000 0 ;; # NAME
kernels) # attention alone, on a GPU that no server holds
  play teardown teardown
  mkdir -p /var/lib/gpufleet/cache/{flashinfer,triton}
  in_image "$PWD/tests/gpu/attention_kernels.py" --build | tee "$out/kernels-built.txt"
  in_image "$PWD/tests/gpu/attention_kernels.py" 2>"$out/kernels.err" | tee "$out/kernels.txt"; tail -3 "$out/kernels.err" ;;
trace) # NAME: the kernels of the server that `throughput NAME` left with "profiler-config": while it takes requests in, and with all of them running
  name=$1 held=$(planned "plan['capacity']['max_concurrent_requests']")
  by_url "$name-trace" 8000 "$held" "$held" 384 & measured=$!
  until_running 0.3 "$held" $measured && traced
  until_running 0.95 "$held" $measured && sleep 2 && traced
  wait $measured
  rm -rf "${out:?}/$name-traces"; docker cp vllm-0:/tmp/traces "$out/$name-traces"
  python3 tests/gpu/kernels.py "$out/$name-traces" | tee "$out/kernels-$name.txt" ;;
utilisation) # each of the values named, on each GPU in turn
  play teardown teardown
  values=("${@:-0.98}")
  for ((i = 0; i < ${#values[@]}; i += cards)); do
    for ((gpu = 0; gpu < cards && i + gpu < ${#values[@]}; gpu++)); do stress "$gpu" "${values[i + gpu]}" & done; wait
  done
  for ((gpu = 0; gpu < cards; gpu++)); do play "teardown-gpu$gpu" teardown -e "$(alone $gpu)"; done ;;
two)
  [ "$cards" -ge 2 ] || { echo "one GPU only"; exit 1; }
  nvidia-smi topo -m | head -8
  play two deploy || exit 1
  phases two; reported
  sees vllm-0 1; sees vllm-1 1
  verify two basic
  play two-again deploy ;;
accuracy) # a task of our own; the words are noise, so no score is asked for
  play recipe deploy || exit 1
  verify accuracy accuracy -v -e "{\"vllm_accuracy_tasks\": [\"capitals\"], \"vllm_accuracy_tasks_dir\": \"$PWD/roles/verify/files/capitals\", \"vllm_accuracy_wheels\": \"$tests/verify/wheels\", \"vllm_accuracy_num_concurrent\": 8}"
  python3 -c "import json, sys; print([stage['scores'] for stage in json.load(open(sys.argv[1]))['hosts'][0]['stages']['accuracy']])" "$out/accuracy/report.json" ;;
access) # which way gives a container its GPUs: what auto finds, and what is said of a way that this host has not
  play access-auto deploy -e vllm_gpu_access=auto || exit 1
  python3 -c 'import json; print("\n".join("   " + d["reason"].replace("; ", "\n   ") for d in json.load(open("/etc/gpufleet/plan.json"))["decisions"] if d["field"] == "gpu_access"))'
  play access-again deploy -e vllm_gpu_access=auto
  verify access gpu
  play access-gpus deploy -e vllm_gpu_access=gpus && echo "   gpus works here, too" ;;
point)
  play point deploy -e vllm_max_num_batched_tokens=16384 -e vllm_max_num_seqs=128; reported
  docker logs vllm-0 >"$out/vllm-point.log" 2>&1; nvidia-smi --query-gpu=memory.used,memory.free --format=csv ;;
settings)
  play utilisation deploy -e vllm_gpu_memory_utilization=0.95; phases utilisation; reported
  play batched deploy -e vllm_max_num_batched_tokens=16384; phases batched; reported
  play seqs deploy -e vllm_max_num_seqs=128; phases seqs; reported ;;
faults)
  play too-long deploy -e vllm_max_model_len=10485760
  play refused deploy -e "$(with_flags '{"moe-backend": "cutlass"}')"
  play status-after status -v; grep -A3 'replicas serving' "$out/status-after.log" ;;
taken)
  play teardown teardown
  PYTHONPATH= setsid python3 -c 'import torch, time; x = torch.empty(60 * 2**30, dtype=torch.uint8, device="cuda"); time.sleep(150)' & holder=$!
  sleep 15; play taken deploy; kill $holder ;;
*) echo "no stage $stage: see $0" >&2; exit 2 ;;
esac
