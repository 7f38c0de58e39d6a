#!/usr/bin/env bash
# Prints how many cores are free just now, 1 at least: of those that this process may use, less what others keep busy
# during half a second. Two files with the content of /proc/stat, an earlier and a later one, may be given instead.
set -euo pipefail

allowed() {
    local cores quota period
    # nproc takes OMP_NUM_THREADS for the number of cores
    cores="$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc 2>/dev/null || echo 1)"
    if read -r quota period 2>/dev/null </sys/fs/cgroup/cpu.max && [ "$quota" != max ] && [ "$period" -gt 0 ]; then
        ((quota / period >= cores)) || cores=$((quota / period))
    fi
    echo $((cores > 1 ? cores : 1))
}

# busy and all ticks of each core: user, nice, system, idle, iowait, irq, softirq, steal
ticks() { awk '/^cpu[0-9]/ { all = 0; for (i = 2; i <= 9; i++) all += $i; print $1, all - $5 - $6, all }' "$1"; }

if [ $# -eq 2 ]; then
    before="$(ticks "$1")" after="$(ticks "$2")" cores="$(grep -c '^cpu[0-9]' "$2")"
elif [ -r /proc/stat ]; then
    before="$(ticks /proc/stat)"
    sleep 0.5
    after="$(ticks /proc/stat)" cores="$(allowed)"
else
    allowed
    exit
fi
printf '%s\n---\n%s\n' "$before" "$after" | awk -v cores="$cores" '
    $1 == "---" { second = 1; next }
    !second { busy[$1] = $2; all[$1] = $3; next }
    $3 > all[$1] { load += ($2 - busy[$1]) / ($3 - all[$1]); seen++ }
    END {
        free = seen - load
        if (free > cores) free = cores
        # a core that is free for most of the time is taken
        free = int(free + 0.4)
        print free < 1 ? 1 : free
    }'
