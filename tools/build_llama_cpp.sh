#!/usr/bin/env bash
# Build llama.cpp natively, the peer that flashllm is measured against.
#
#   tools/build_llama_cpp.sh DIR [SDIST]
#
# The source is the one vendored in the PyPI sdist llama-cpp-python 0.3.36 (llama.cpp 0c1e570),
# fetched by name with pip, or the SDIST given. Cmake and ninja come from an environment of their
# own inside DIR. Leaves in DIR/bin: llama-bench, llama-perplexity, llama-tokenize, and the helpers
# llama_logits, llama_tokens and llama_decode of this directory, linked to the same library.
# Takes about 10 minutes on two cores and 1.5 GB of disk.
set -euo pipefail

version=0.3.36
dir=$(realpath -m "${1:?usage: build_llama_cpp.sh DIR [SDIST]}")
sdist=${2:+$(realpath "$2")}
here=$(dirname "$(realpath "$0")")
mkdir -p "$dir/bin"

if [ ! -x "$dir/env/bin/ninja" ]; then
  python3 -m venv "$dir/env"
  "$dir/env/bin/pip" install -q cmake ninja scikit-build-core pyproject-metadata pathspec
fi
if [ ! -d "$dir/src" ]; then
  if [ -z "$sdist" ]; then
    "$dir/env/bin/pip" download -q --no-deps --no-binary :all: --no-build-isolation \
      -d "$dir" "llama-cpp-python==$version"
    sdist=$dir/llama_cpp_python-$version.tar.gz
  fi
  rm -rf "$dir/src.partial" && mkdir "$dir/src.partial"
  tar xzf "$sdist" -C "$dir/src.partial" --strip-components=1
  mv "$dir/src.partial" "$dir/src"
fi

source=$dir/src/vendor/llama.cpp
build=$dir/build

# GCC 12.2's _tile_loadconfig tells the compiler of 8 of the 64 bytes it reads, so the others are
# never stored and AMX (which llama.cpp uses for repacked weights) dies of a bad configuration.
# This says that all are read; it changes nothing for other compilers.
amx=$source/ggml/src/ggml-cpu/amx/mmq.cpp
barrier='__asm__ volatile("" : : "r"(\&tc) : "memory");'
grep -q 'asm__ volatile("" : : "r"(&tc)' "$amx" ||
  sed -i "s/^    _tile_loadconfig(&tc);/    $barrier\n&/" "$amx"
PATH=$dir/env/bin:$PATH
targets=(llama-bench llama-perplexity llama-quantize llama-tokenize)
cmake -G Ninja -S "$source" -B "$build" -DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON \
  -DBUILD_SHARED_LIBS=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF \
  -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_UI=OFF >"$dir/cmake.log"
nice -n 10 ninja -C "$build" "${targets[@]}" >"$dir/ninja.log"
for target in "${targets[@]}"; do cp "$build/bin/$target" "$dir/bin/"; done

libraries=()
for name in llama ggml ggml-cpu ggml-base; do
  libraries+=("$(find "$build" -name "lib$name.a" -print -quit)")
done
for helper in llama_logits llama_tokens llama_decode; do
  g++ -O2 -std=c++17 -Wall -Wextra -I"$source/include" -I"$source/ggml/include" \
    "$here/$helper.cpp" -o "$dir/bin/$helper" "${libraries[@]}" -fopenmp -lpthread -ldl
done

# What "native" became here: the compiler's own name for this CPU, and whether AMX was compiled in.
# GGML uses AMX, where present, only for repacked weights.
echo "compiler: $(g++ --version | head -1)"
echo "native: $(gcc -march=native -Q --help=target | awk '$1 == "-march=" {print $2}')"
flags=$(gcc -march=native -dM -E -x c /dev/null | grep -c -E '__AMX_INT8__|__AVX512VNNI__' || true)
[ "$flags" = 2 ] && echo "AMX: compiled in (used only with repacking on)" || echo "AMX: not compiled in"
echo "built: $dir/bin"
