#!/usr/bin/env bash
# Run the tests of kernels and decoder for CPUs other than this one, by hiding instructions from the
# compiler: AVX-512 masked (with and without AVX-VNNI), then vectors alone, as on any unknown CPU.
#
#   tools/check_isa.sh [PYTEST ARGUMENTS]      default: tests/kernels tests/model
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- tests/kernels tests/model

v3="+avx2,+avx,+fma,+f16c,+bmi,+bmi2,+lzcnt,+popcnt,+sse4.2,+sse4.1,+ssse3,+sse3,+sse2,+sse,+cx16"
run() {
    echo "== $1"
    NUMBA_CPU_NAME=$2 NUMBA_CPU_FEATURES=$3 python -m pytest -q "${@:4}"
}
run "AVX2" haswell "$v3" "$@"
if grep -q avx_vnni /proc/cpuinfo 2>/dev/null; then
    run "AVX2 with VNNI" alderlake "$v3,+avxvnni" "$@"
fi
run "portable vectors" x86-64 "+sse2,+sse,+cx16" "$@"
