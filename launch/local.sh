#!/usr/bin/env bash
# Runs a config on this machine: one process for all its devices, or several that form one run.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'TEXT'
Runs a config on this machine.

  launch/local.sh [--config=FILE] [--workdir=DIR] [--processes=N] [--cpu-devices=M] [--dry-run]
                  [-- more flags of nvret_jax.main]

  --config=FILE     config file, ':smoke' may follow it       (env CONFIG, configs/quickstart.py)
  --workdir=DIR     folder of the run                         (env WORKDIR, runs/<config's name>)
  --processes=N     N processes that form one run             (env PROCESSES, 1)
  --cpu-devices=M   no accelerator: M virtual CPU devices in each process
                                                              (env CPU_DEVICES, unset)
  --dry-run         print the commands and do nothing
  --help            this text

Relative paths start at the root of the repository. One process uses every device of the machine,
which is right for a multi-GPU host. --processes tries out a run of several processes: each gets
the GPU with its number, or M CPU devices with --cpu-devices (bash 4.3 or newer).
Ctrl-C and TERM let the run save what it has, for GRACE seconds at most.
Other variables: PYTHON (.venv/bin/python if it is there, else python), PORT (12321), GRACE (60).

  launch/local.sh --config=configs/quickstart.py:smoke
  launch/local.sh --processes=2 --cpu-devices=2 -- --config.train.steps=20
TEXT
}

fail() {
  echo "error: $*" >&2
  exit 2
}

number() { # NAME VALUE
  [[ "$2" =~ ^[1-9][0-9]*$ ]] || fail "$1=$2: expected a positive number"
}

CONFIG="${CONFIG:-configs/quickstart.py}"
WORKDIR="${WORKDIR:-}"
PROCESSES="${PROCESSES:-1}"
CPU_DEVICES="${CPU_DEVICES:-}"
PORT="${PORT:-12321}"
GRACE="${GRACE:-60}"
dry_run=""
more=()
while [ $# -gt 0 ]; do
  case "$1" in
    --config=*) CONFIG="${1#*=}" ;;
    --workdir=*) WORKDIR="${1#*=}" ;;
    --processes=*) PROCESSES="${1#*=}" ;;
    --cpu-devices=*) CPU_DEVICES="${1#*=}" ;;
    --dry-run) dry_run=1 ;;
    --help | -h) usage; exit 0 ;;
    --) shift; more=("$@"); break ;;
    *) fail "unknown option $1; see launch/local.sh --help, and put flags of the run after --" ;;
  esac
  shift
done
number --processes "$PROCESSES"
number GRACE "$GRACE"
[ -z "$CPU_DEVICES" ] || number --cpu-devices "$CPU_DEVICES"
if [ -z "$WORKDIR" ]; then
  name="$(basename "${CONFIG%%:*}" .py)"
  case "$CONFIG" in *:*) name="$name-${CONFIG##*:}" ;; esac
  WORKDIR="runs/$name"
fi
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python
  [ ! -x .venv/bin/python ] || PYTHON=.venv/bin/python
fi

# Process $1: the command in `command`, with `env` before it where something must be set.
compose() {
  local settings=()
  if [ -n "$CPU_DEVICES" ]; then
    settings=(JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=$CPU_DEVICES")
  elif [ "$PROCESSES" -gt 1 ]; then
    settings=("CUDA_VISIBLE_DEVICES=$1")
  fi
  command=("$PYTHON" -m nvret_jax.main "--config=$CONFIG" "--workdir=$WORKDIR")
  if [ "${#settings[@]}" -gt 0 ]; then
    command=(env "${settings[@]}" "${command[@]}")
  fi
  if [ "$PROCESSES" -gt 1 ]; then
    command+=(
      "--config.distributed.coordinator=127.0.0.1:$PORT"
      "--config.distributed.num_processes=$PROCESSES"
      "--config.distributed.process_id=$1"
    )
  fi
  command+=(${more[@]+"${more[@]}"})
}

if [ -n "$dry_run" ]; then
  for ((i = 0; i < PROCESSES; i++)); do
    compose "$i"
    printf '%q ' "${command[@]}" | sed 's/ $//'
    echo
  done
  exit 0
fi

if [ "$PROCESSES" -eq 1 ]; then
  compose 0
  exec "${command[@]}"
fi

pids=()
status=0    # of the first process that failed
stopped=""  # the signal that this script got
ask_at=""   # when those that are left are asked to end, and when they are killed
kill_at=""

ask() {
  [ "${#pids[@]}" -eq 0 ] || kill -TERM "${pids[@]}" 2>/dev/null || true
  kill_at=$((SECONDS + GRACE))
}

stop() { # A run that is asked to end saves first; asked twice, it ends at once.
  stopped="$1"
  ask_at=asked
  ask
}

trap 'kill -KILL ${pids[@]+"${pids[@]}"} 2>/dev/null || true' EXIT
for signal in INT TERM HUP; do
  # shellcheck disable=SC2064
  trap "stop $signal" "$signal"
done
for ((i = 0; i < PROCESSES; i++)); do
  compose "$i"
  "${command[@]}" &
  pids+=($!)
done
while :; do
  left=()
  for pid in "${pids[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then
      left+=("$pid")
    else
      code=0
      wait "$pid" || code=$?
      [ "$status" -ne 0 ] || status=$code
    fi
  done
  pids=(${left[@]+"${left[@]}"})
  [ "${#pids[@]}" -gt 0 ] || break
  # Processes that have joined end together by themselves, and say why. Others are asked.
  if [ "$status" -ne 0 ] && [ -z "$ask_at" ]; then ask_at=$((SECONDS + 10)); fi
  if [ -n "$ask_at" ] && [ "$ask_at" != asked ] && [ "$SECONDS" -ge "$ask_at" ]; then
    ask_at=asked
    ask
  fi
  if [ -n "$kill_at" ] && [ "$SECONDS" -ge "$kill_at" ]; then
    echo "error: killed what had not ended $GRACE s after it was asked to" >&2
    kill -KILL "${pids[@]}" 2>/dev/null || true
    kill_at=""
  fi
  sleep 0.2
done
# The processes get TERM for Ctrl-C, too: a shell lets what it starts in the background ignore INT.
if [ "$stopped" = INT ] && [ "$status" -eq 143 ]; then status=130; fi
exit "$status"
