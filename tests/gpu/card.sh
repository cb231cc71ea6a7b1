#!/usr/bin/env bash
# Everything that only a card can show, in under ten minutes: conformance, encoding and training speed beside PyTorch,
# memory of a 7B model. Prints one JSON line a measurement; docs/measurements.md keeps them.
#
# usage: tests/gpu/card.sh CTL [CONFORMANCE]
#   CTL          the program
#   CONFORMANCE  the test binary of `cargo test --release -p motley-backends --test conformance --no-run`, if wanted
# PyTorch's lines need python3 with torch, transformers and peft; without them they are left out, and that is said.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
ctl=$1
conformance=${2:-}
step() { printf '\n== %s (%ss)\n' "$1" "$SECONDS"; }

step "device"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
"$ctl" devices || true

if [ -n "$conformance" ]; then
    step "conformance"
    MOTLEY_CONFORMANCE=full "$conformance" cuda_conforms --nocapture
    "$conformance" wgpu_conforms --nocapture
fi

step "encoding: length 512 and 50"
for shape in bge-small bge-base bge-large; do
    for length in 512 50; do
        "$ctl" bench encode --backend cuda --random-weights $shape --length $length --texts $((262144 / length))
    done
done
python3 "$here/card_peers.py" encode || echo "skipped: PyTorch's encoding"

step "training: QLoRA and LoRA of bge-base, 512 tokens a text, 16384 tokens a step"
for adapter in qlora lora; do
    "$ctl" bench train --backend cuda --random-weights bge-base --adapter $adapter --length 512 \
        --tokens-per-step 16384 --steps 10
done
python3 "$here/card_peers.py" train || echo "skipped: PyTorch's training"

step "QLoRA of a 7B Mistral shape, 8192 tokens a step"
"$ctl" bench train --backend cuda --random-weights mistral-7b --quantization nf4 --loss infonce --length 512 \
    --tokens-per-step 8192 --checkpoint-layers --steps 3

step "kernels"
"$ctl" bench kernels --backend cuda --shape bge-base --length 512 --texts 32

step "wgpu on the same card"
"$ctl" bench encode --backend wgpu --random-weights bge-base --length 512 --texts 64

step "done"
