#!/usr/bin/env bash
# The demonstration on real input: trains a small Llama with fp32 AdamW, with the paper's format and with
# ours, each also with gradient release, and ends with the table. Then three steps of a model of 300 M
# parameters, for which the operating system reports the memory.
#   scripts/demo.sh               on text made of this repository's own documents and sources
#   DATA=PATH scripts/demo.sh     on a UTF-8 text file, a folder of them, or .bin token files (their
#                                 vocabulary makes both models larger)
#   STEPS=N OUT=DIR               steps of the small model (400); the folder of the results (out/demo)
# `make demo` sets everything up first and passes on DATA, STEPS and OUT.
set -euo pipefail
cd "$(dirname "$0")/.."

command="${FLASHOPTIM:-build/release/apps/flashoptim/flashoptim}"
out="${OUT:-out/demo}"
steps="${STEPS:-400}"
if [ -z "${FLASHOPTIM_PYTHON:-}" ] && [ -x .venv/bin/python ]; then export FLASHOPTIM_PYTHON=.venv/bin/python; fi

data="${DATA:-}"
if [ -z "$data" ]; then
    data="$out/corpus.txt"
    mkdir -p "$out"
    find . \( -path ./build -o -path ./out -o -path './.*' \) -prune -o -type f \( -name '*.md' -o -name LICENSE -o -name '*.h' \
        -o -name '*.cpp' -o -name '*.c' -o -name '*.cu' -o -name '*.cuh' -o -name '*.py' -o -name '*.sh' -o -name '*.cmake' \) -print |
        LC_ALL=C sort | tr '\n' '\0' | xargs -0 cat >"$data"
    echo "demo: the text is this repository's own documents and sources, $(wc -c <"$data") bytes; DATA=PATH takes another"
fi

echo "demo: llama-1m, a Llama of 1 M parameters on text, $steps steps of 8 x 128 tokens"
"$command" compare --data "$data" --model llama-1m --steps "$steps" --batch 8 --sequence 128 --warmup 40 --lr 1e-3 \
    --eval-every 50 --eval-batches 16 --with-gradient-release --out "$out/small" --overwrite

# fp32 AdamW needs 16 bytes per parameter beside activations: about 6 GB here, 9 GB with Llama 3's vocabulary.
needed_kib=$((8 * 1024 * 1024))
if [ -n "$(find "$data" -name '*.bin' -print -quit)" ]; then needed_kib=$((12 * 1024 * 1024)); fi
available_kib=$(sed -n 's/^MemAvailable: *\([0-9]*\) kB/\1/p' /proc/meminfo 2>/dev/null || true)
if [ -n "$available_kib" ] && [ "$available_kib" -lt "$needed_kib" ]; then
    echo "demo: the model of 300 M parameters is left out: it needs $((needed_kib / 1048576)) GiB of free memory, there are $((available_kib / 1048576)) GiB"
    exit 0
fi
echo
echo "demo: llama-300m, a Llama of 300 M parameters on text, 3 steps of 1 x 64 tokens: what the operating system measures (the loss says nothing yet)"
"$command" compare --data "$data" --model llama-300m --steps 3 --batch 1 --sequence 64 --eval-every 3 --eval-batches 1 \
    --schedule constant --lr 1e-4 --with-gradient-release --no-checkpoint --no-plot --out "$out/large" --overwrite
