#!/bin/bash
# Makes a cluster of nine nodes, three primaries with two replicas each. Does nothing where there is one.
set -eu
if redis-cli -h redis-1 cluster info | grep -q cluster_slots_assigned:16384; then
    exit 0
fi
nodes=()
for number in 1 2 3 4 5 6 7 8 9; do
    # Nodes meet by address, not by name.
    nodes+=("$(getent ahostsv4 "redis-$number" | head -n 1 | cut -d ' ' -f 1):6379")
done
redis-cli --cluster create "${nodes[@]}" --cluster-replicas 2 --cluster-yes
