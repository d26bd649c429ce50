# shellcheck shell=bash
# Settings of ranks that compute on a CPU:  source launch/cpu.sh PROCESSES_PER_HOST
# The same as cpu_settings() in hyena_ds/runtime/local_ranks.py, for launchers that `hyena-ds train` does not start.
# A variable or tunable that is already set stays; an empty GLIBC_TUNABLES keeps all tunables away.
if [ -z "${OMP_NUM_THREADS+set}" ]; then
    OMP_NUM_THREADS=$(($(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) / ${1:?usage: source launch/cpu.sh PROCESSES}))
    [ "$OMP_NUM_THREADS" -gt 0 ] || OMP_NUM_THREADS=1
    export OMP_NUM_THREADS
fi
if [ -n "${GLIBC_TUNABLES-unset}" ] && getconf GNU_LIBC_VERSION >/dev/null 2>&1; then
    for tunable in hugetlb=1 mmap_threshold=16777216 trim_threshold=68719476736; do
        case ":${GLIBC_TUNABLES:-}" in
        *:glibc.malloc."${tunable%=*}"=*) ;;
        *) GLIBC_TUNABLES=${GLIBC_TUNABLES:+$GLIBC_TUNABLES:}glibc.malloc.$tunable ;;
        esac
    done
    export GLIBC_TUNABLES
    unset tunable
fi
