#!/usr/bin/env bash
# One Prefect worker. Its flows are Ray drivers, and a driver needs a Ray node on its own host: this
# container joins the cluster as a node without CPUs, where no work is placed. Arguments go to the
# worker.
set -euo pipefail
port=${RAY_NODE_PORT:-6380}
deadline=$((SECONDS + ${RAY_WAIT_SECONDS:-120}))

# Run a command every second until it succeeds; give up, with a line that says why, after a while.
wait_for() {
    local what=$1
    shift
    until "$@" >/dev/null 2>&1; do
        if ((SECONDS >= deadline)); then
            echo "worker: $what did not answer within ${RAY_WAIT_SECONDS:-120} s" >&2
            exit 1
        fi
        sleep 1
    done
}

node_listens() (exec 3<>"/dev/tcp/$(hostname)/$port")

wait_for "the Ray head at $RAY_ADDRESS" timeout 20 ray health-check --address "$RAY_ADDRESS"

# A node ends when its head is gone, and every flow would fail from then on. So the worker ends with
# it ($$ is Prefect's process after exec), and whoever keeps this container starts both again.
(
    ray start --block --address="$RAY_ADDRESS" --num-cpus=0 --node-manager-port="$port" \
        --object-store-memory="${RAY_OBJECT_STORE_BYTES:-500000000}" --disable-usage-stats ||
        true
    echo "worker: the Ray node ended, so the worker ends" >&2
    kill -TERM $$
) &
wait_for "the Ray node of this container" node_listens

# exec: signals go to the worker. At SIGTERM it takes no new run and waits for those it has.
exec python -m deployments.worker "$@"
