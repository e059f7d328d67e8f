#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: builds the program for it, holds it against the recorded PyTorch goldens and against
# its own answers on the CPU, and measures it.
#
#     reference/gpu/build_and_check.sh [OUT]
#
# Needs the Rust toolchain, a driver for CUDA 13, and either nvcc or Python with pip. Results lie in OUT (out/gpu).
# Ends with an error at the first thing that is wrong.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=${1:-out/gpu}
mkdir -p "$out"

step() { printf '\n== %s\n' "$*"; }

step 'the GPU'
nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv | tee "$out/gpu.csv"

if command -v nvcc >/dev/null; then
  export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)}
else
  step 'CUDA from Python packages'
  reference/gpu/cuda_tree.sh target/cuda/tree
  source target/cuda/tree/env
fi

step "building for compute capability $CUDA_COMPUTE_CAP"
cargo build --release --locked -p gpt4roi-cli --features cuda
gpt4roi=${CARGO_TARGET_DIR:-target}/release/gpt4roi

step 'parity with PyTorch, every tensor on the way'
GPT4ROI_DEVICE=cuda cargo test --release --locked -p gpt4roi --features cuda --test parity

step 'the embedded model answers as on the CPU'
ask() { "$gpt4roi" ask docs/example.png "$1" --region 8,14,54,59 --region 109,0,181,59 --quiet "${@:2}"; }
for question in 'What are <region1> and <region2>?' 'Describe <region1> in detail.' 'Where is <region2> relative to <region1>?'; do
  cpu=$(ask "$question" --device cpu)
  for dtype in f32 f16 bf16; do
    gpu=$(ask "$question" --device cuda --dtype "$dtype")
    printf '%-4s %s\n' "$dtype" "$gpu"
    [ "$dtype" != f32 ] || [ "$gpu" = "$cpu" ] || { echo "the CPU says: $cpu"; exit 1; }
  done
done

step 'a device that is not there is refused'
! "$gpt4roi" ask docs/example.png 'What is <region1>?' --region 8,14,54,59 --device cuda:99 2>"$out/refusal.txt"
cat "$out/refusal.txt"

step 'speed at the size of the original'
bench() { "$gpt4roi" bench --device cuda --runs 9 --json "$@"; }
bench --quantize none --dtype f16 > "$out/bench-f16.json"
bench --quantize none --dtype bf16 > "$out/bench-bf16.json"
bench --quantize q4_k --dtype f16 --stages prefill,decode,batch > "$out/bench-q4_k.json"
bench --quantize q8_0 --dtype f16 --stages prefill,decode,batch > "$out/bench-q8_0.json"
"$gpt4roi" bench --device cpu --runs 3 --json > "$out/bench-cpu.json"
grep -H -E '"(stage|seconds|tokens_per_second|times_one_caption)"' "$out"/bench-*.json
