#!/usr/bin/env bash
# Deploys the small model of inventories/local on this machine, verifies it, and says where both can be seen.
# Arguments are handed to the first ansible-playbook: tools/demo.sh --check --diff
# With MONITORING=1 in the environment Prometheus and Alertmanager watch it, too.
set -euo pipefail
cd "$(dirname "$0")/.."

export PATH="$PWD/.venv/bin:$PATH" ANSIBLE_CONFIG="$PWD/ansible.cfg" PYTHONUNBUFFERED=1
inventory=(-i inventories/local)
if [ -n "${MONITORING:-}" ]; then
  inventory+=(-i inventories/monitored)
  [ -d /run/systemd/system ] || inventory+=(-e monitoring_start=false)
fi
teardown=".venv/bin/ansible-playbook playbooks/teardown.yml ${inventory[*]}"
# The deployment writes to /etc and starts containers. Root needs no sudo; whoever has to give a password is asked for it.
if [ "$(id -u)" -ne 0 ] && ! sudo -n true 2>/dev/null; then
  inventory+=(--ask-become-pass)
fi

started=$SECONDS
ansible-playbook playbooks/deploy.yml "${inventory[@]}" "$@"
# Before the verification, which gives it something to see.
[ -z "${MONITORING:-}" ] || tools/demo_monitoring.sh start "${inventory[@]}"
ansible-playbook playbooks/verify.yml "${inventory[@]}"

read -r url model < <(ansible-inventory -i inventories/local --host localhost | python -c '
import json, sys
settings = json.load(sys.stdin)
print("http://{}:{}".format(settings.get("vllm_host", "127.0.0.1"), settings.get("vllm_port", 8000)), settings["vllm_model"])')
echo
echo "The server answers at $url (make demo took $((SECONDS - started)) s). Try it yourself:"
echo "  curl $url/v1/completions -H 'Content-Type: application/json' \\"
echo "    -d '{\"model\": \"$model\", \"prompt\": \"The capital of France is\", \"max_tokens\": 20}'"
if [ -n "${MONITORING:-}" ]; then
  echo "Prometheus has what was measured meanwhile, and the rules: http://127.0.0.1:9090/targets and /alerts"
  echo "Alertmanager, which tells alerts to no one here: http://127.0.0.1:9093"
  echo "The dashboards, for a Grafana that you have: /etc/gpufleet-monitoring/dashboards"
  if [ ! -d /run/systemd/system ]; then
    echo "End the three programs of monitoring before you remove their files; no systemd does:"
    echo "  tools/demo_monitoring.sh stop"
  fi
fi
echo "Remove the server and its configuration; the model, the image, the caches and the Python libraries stay:"
echo "  $teardown"
echo "Or remove these as well, at once: after the command above the image would stay:"
echo "  $teardown -e vllm_purge_caches=true"
echo "Installed packages, the Docker engine among them, and the folder reports stay either way."
echo "The report of the verification: $PWD/reports/report.html"
