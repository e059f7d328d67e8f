#!/usr/bin/env bash
# Lays out what a CUDA build needs in one folder, without a CUDA installation and without root: the compiler, headers
# and libraries come from NVIDIA's Python packages.
#
#     reference/gpu/cuda_tree.sh TREE
#
# Afterwards `source TREE/env`; it names the folder to cargo, nvcc and the linker. CUDA_COMPUTE_CAP has to name the
# architecture that code is made for (90 for Hopper, 80 for Ampere); it is asked of the driver where there is one.
set -euo pipefail
tree=$(mkdir -p "${1:?expected TREE}" && cd "$1" && pwd)

packages=(nvidia-cuda-nvcc nvidia-nvvm nvidia-cuda-crt nvidia-cuda-runtime nvidia-cuda-cccl nvidia-cuda-nvrtc)
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
python3 -m pip download --quiet --no-deps --only-binary=:all: --dest "$wheels" \
  "${packages[@]/%/==13.0.*}" 'nvidia-cublas==13.*' nvidia-curand

# Each wheel has its part of the tree in nvidia/cu13.
for wheel in "$wheels"/*.whl; do
  python3 -m zipfile -e "$wheel" "$wheels/unpacked"
done
cp -r "$wheels/unpacked/nvidia/cu13/." "$tree"
chmod +x "$tree"/bin/* "$tree"/nvvm/bin/*

# The linker asks for names without versions, older scripts for lib64. The driver's own library is on a GPU machine.
for name in cublas cublasLt cudart nvrtc curand; do
  library=$(find "$tree/lib" -name "lib$name.so.*" | sort | head -1)
  ln -sf "$(basename "$library")" "$tree/lib/lib$name.so"
done
ln -sfn lib "$tree/lib64"
driver=$(ldconfig -p 2>/dev/null | awk '/libcuda\.so\.1 / { print $NF; exit }')
[ -z "$driver" ] || ln -sf "$driver" "$tree/lib/libcuda.so"

cat > "$tree/env" <<ENV
export CUDA_HOME='$tree' CUDA_PATH='$tree' CUDA_ROOT='$tree' NVCC='$tree/bin/nvcc' CUDARC_CUDA_VERSION=13000
export PATH='$tree/bin':"\$PATH" LIBRARY_PATH='$tree/lib' LD_LIBRARY_PATH='$tree/lib':"\${LD_LIBRARY_PATH:-}"
export RUSTFLAGS="-L native=$tree/lib \${RUSTFLAGS:-}"
[ -n "\${CUDA_COMPUTE_CAP:-}" ] ||
  export CUDA_COMPUTE_CAP=\$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)
ENV
echo "CUDA tree in $tree"
