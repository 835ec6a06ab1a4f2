#!/bin/bash
# A training run on TPU hosts of Compute Engine: a managed instance group.
#
#   deploy/compute-engine.sh create     # the slice: all hosts at once, or wait
#   deploy/compute-engine.sh install    # Python and atm, on every host
#   deploy/compute-engine.sh run        # and again, the same, to resume
#   deploy/compute-engine.sh delete
#   deploy/compute-engine.sh keep       # all of these, until the run has ended
#
# `keep` is for spot hosts: where the cloud takes one it makes the slice anew,
# and the run resumes. Call it where it may stay for days, in tmux on a small
# machine: where it ends the run saves and ends, too.
#
# Yours: everything up to `set -u`. run.gin has MODEL_DIR and CACHE_DIR in a
# bucket; hosts need a way out (Cloud NAT) and Private Google Access. TPU7x:
# MACHINE=tpu7x-standard-4t IMAGE=ubuntu-accel-2404-amd64-tpu-tpu7x.
#
# Run: bash -n, shellcheck, and all of its branches with a `gcloud` that a test
# plays. Not run: gcloud. Flags are those of Google's pages (tpus-and-migs,
# create-tpu-mig-multi-host-slice).
PROJECT=${PROJECT:-my-project}
ZONE=${ZONE:-europe-west4-a}
NAME=${NAME:-atm-20b}
MACHINE=${MACHINE:-ct6e-standard-4t}
TOPOLOGY=${TOPOLOGY:-16x16}
HOSTS=${HOSTS:-64}
MODEL=${MODEL:-SPOT}  # or STANDARD
IMAGE=${IMAGE:-ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e}
SOURCE=${SOURCE:-gs://BUCKET/atm.tar.gz}  # git archive -o atm.tar.gz HEAD
RUN_GIN=${RUN_GIN:-gs://BUCKET/20b.gin}
PAUSE=${PAUSE:-60}  # seconds between looks
COMMAND=${COMMAND:-'.venv/bin/atm pretrain --gin_file=models/20b.gin
  --gin_file=pods/v6e_16x16.gin --gin_file=run.gin'}
set -u
region=${ZONE%-*}
place=(--project="$PROJECT" --zone="$ZONE")
group=(gcloud compute instance-groups managed)

create() {
  local regional="projects/$PROJECT/regions/$region"
  # The policy wires the hosts as one slice; it and the template outlive it.
  gcloud compute resource-policies describe "$NAME" --project="$PROJECT" \
    --region="$region" > /dev/null 2>&1 ||
    gcloud compute resource-policies create workload-policy "$NAME" \
      --project="$PROJECT" --region="$region" --type=HIGH_THROUGHPUT \
      --accelerator-topology="$TOPOLOGY" \
      --accelerator-topology-mode=AUTO_CONNECT || return
  gcloud compute instance-templates describe "$regional/instanceTemplates/$NAME" \
    --project="$PROJECT" > /dev/null 2>&1 ||
    gcloud compute instance-templates create "$NAME" --project="$PROJECT" \
      --instance-template-region="$region" --machine-type="$MACHINE" \
      --provisioning-model="$MODEL" --instance-termination-action=DELETE \
      --maintenance-policy=TERMINATE --boot-disk-size=200GB --no-address \
      --image-project=ubuntu-os-accelerator-images --image-family="$IMAGE" \
      --scopes=https://www.googleapis.com/auth/cloud-platform || return
  "${group[@]}" create "$NAME" "${place[@]}" --size=0 \
    --template="$regional/instanceTemplates/$NAME" \
    --target-size-policy-mode=bulk --default-action-on-vm-failure=do-nothing \
    --workload-policy="$regional/resourcePolicies/$NAME" &&
    "${group[@]}" resize "$NAME" "${place[@]}" --size="$HOSTS" &&
    await_hosts
}

list_hosts() {  # those that run
  "${group[@]}" list-instances "$NAME" "${place[@]}" \
    --filter=instanceStatus=RUNNING --format='value(instance.basename())'
}

await_hosts() {
  local count
  until count=$(list_hosts | wc -l) && [ "$count" = "$HOSTS" ]; do
    echo "$count of $HOSTS hosts"
    sleep "$PAUSE"
  done
}

all() {  # runs a command on every host; the greatest status, or 2 if one has it
  local hosts status=0 one mistake='' pids=()
  hosts=$(list_hosts)
  [ -n "$hosts" ] || return 1
  for host in $hosts; do
    # By -tt the host's command gets SIGHUP where the connection ends; without
    # ServerAliveInterval nobody would learn that a host is gone.
    gcloud compute ssh "$host" "${place[@]}" --command="$1" \
      -- -tt -o ServerAliveInterval=30 < /dev/null &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do
    wait "$pid"
    one=$?
    [ $one = 2 ] && mistake=2
    [ $one -gt $status ] && status=$one
  done
  return ${mistake:-$status}
}

install() {
  all "set -e
    curl -LsSf https://astral.sh/uv/install.sh | sh
    mkdir -p atm && cd atm
    gcloud storage cp $SOURCE atm.tar.gz && tar xzf atm.tar.gz
    gcloud storage cp $RUN_GIN run.gin
    ~/.local/bin/uv venv --clear --python 3.12 .venv
    ~/.local/bin/uv pip install --python .venv/bin/python '.[gcs,tpu]' \
      --constraint requirements/lock-3.12.txt"
}

run() {
  all "cd atm && exec ${COMMAND//$'\n'/ }"
}

delete() {
  "${group[@]}" delete "$NAME" "${place[@]}" --quiet
}

keep() {
  local status=1 ready=''
  while true; do
    if [ -z "$ready" ] || [ "$(list_hosts | wc -l)" != "$HOSTS" ]; then
      delete > /dev/null 2>&1  # what a taken host left, if anything
      create && install && ready=yes || ready=''
    fi
    if [ -n "$ready" ]; then
      run
      status=$?
      # 0: done. 2: a mistake in the settings, which no host mends.
      case $status in 0 | 2) break ;; esac
    fi
    echo "status $status: again in $PAUSE s"
    sleep "$PAUSE"
  done
  delete
  return $status
}

case ${1:-} in
  create | install | run | delete | keep) "$1" ;;
  *)
    echo "usage: $0 create | install | run | delete | keep" >&2
    exit 2
    ;;
esac
