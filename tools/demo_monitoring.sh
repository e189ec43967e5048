#!/usr/bin/env bash
# tools/demo_monitoring.sh start OPTION...      have Prometheus, Alertmanager and node_exporter watch this machine
# tools/demo_monitoring.sh stop                 end them where no systemd does
# Part of make demo MONITORING=1; the options are those of ansible-playbook. Where no systemd runs the machine, as in a
# container, monitoring_start=false has to be one of them, and the programs are started here, with the command lines of
# the units that the role has written.
set -euo pipefail
cd "$(dirname "$0")/.."

logs=$PWD/.cache/monitoring
root=()
[ "$(id -u)" -eq 0 ] || root=(sudo)

stop() {
  local file number
  for file in "$logs"/*.pid; do
    [ -e "$file" ] || continue
    number=$(cat "$file")
    # The number may be another program's by now.
    if grep -q gpufleet-monitoring "/proc/$number/cmdline" 2>/dev/null; then
      "${root[@]}" kill "$number"
      while grep -q gpufleet-monitoring "/proc/$number/cmdline" 2>/dev/null; do sleep 0.2; done
    fi
    rm -f "$file"
  done
}

start() {
  local unit line words
  ansible-playbook playbooks/monitoring.yml "$@"
  [ ! -d /run/systemd/system ] || return 0
  echo "No systemd runs this machine: Prometheus, Alertmanager and node_exporter are started by this script."
  stop
  mkdir -p "$logs"
  for unit in prometheus alertmanager node-exporter; do
    line=$(sed -n 's/^ExecStart=//p' "/etc/systemd/system/gpufleet-$unit.service")
    read -ra words <<<"$line"
    # The number of the inner shell, which expands this, becomes the program's.
    # shellcheck disable=SC2016
    "${root[@]}" setsid sh -c 'echo $$ >"$0"; exec setpriv --reuid=prometheus --regid=prometheus --init-groups "$@"' \
      "$logs/$unit.pid" "${words[@]}" >"$logs/$unit.log" 2>&1 </dev/null &
  done
}

case ${1:-} in
  start) start "${@:2}" ;;
  stop) stop ;;
  *) sed -n 's/^# \(tools.*\)/\1/p' "$0" >&2; exit 2 ;;
esac
