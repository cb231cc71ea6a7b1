#!/usr/bin/env bash
# Everything that only a card can show, in under ten minutes: conformance, agreement of a real model, encoding and
# training speed beside PyTorch, memory of a 7B model. Prints one JSON line a measurement; docs/measurements.md keeps
# them.
#
# usage: tests/gpu/card.sh CTL [CONFORMANCE [MODEL_DIR STS.jsonl]]
#   CTL          the program
#   CONFORMANCE  the binary of `cargo test --release -p motley-backends --test conformance --no-run`; - leaves it out
#   MODEL_DIR    a model folder, and sentence pairs with scores, for the agreement of backends
# PyTorch's lines need python3 with torch, transformers and peft; without them they are left out, and that is said.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
ctl=$1
conformance=${2:--}
step() { printf '\n== %s (%ss)\n' "$1" "$SECONDS"; }
# What hangs costs a minute or two, not the session.
within() { timeout "$@" || echo "failed or out of time: ${*:2}"; }

step "device"
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader

if [ "$conformance" != - ]; then
    step "conformance of cuda"
    within 60 "$conformance" cuda_conforms --exact --nocapture
fi
if [ -n "${3:-}" ]; then
    step "agreement with the cpu"
    within 60 python3 "$here/agreement.py" "$ctl" "$3" "$4"
fi

step "encoding"
for shape in bge-base bge-large bge-small; do
    for length in 512 50; do
        within 30 "$ctl" bench encode --backend cuda --random-weights $shape --length $length \
            --texts $((262144 / length))
    done
done
within 60 python3 "$here/card_peers.py" encode

step "training of bge-base, 512 tokens a text, 16384 tokens a step"
for adapter in qlora lora; do
    within 40 "$ctl" bench train --backend cuda --random-weights bge-base --adapter $adapter --length 512 \
        --tokens-per-step 16384 --steps 10
done
within 60 python3 "$here/card_peers.py" train

step "QLoRA of a 7B Mistral shape, 8192 tokens a step"
within 150 "$ctl" bench train --backend cuda --random-weights mistral-7b --adapter qlora --loss infonce --length 512 \
    --tokens-per-step 8192 --checkpoint-layers --steps 3

step "kernels"
within 40 "$ctl" bench kernels --backend cuda --shape bge-base --length 512 --texts 32

step "a few rows of a 7B shape: NF4 decoded in the product up to 32 rows, before it above"
for rows in 16 40; do
    within 40 "$ctl" bench kernels --backend cuda --shape mistral-7b --length $rows --texts 1 | grep "product "
done

step "wgpu on the same card"
within 30 "$ctl" bench encode --backend wgpu --random-weights bge-base --length 512 --texts 64
if [ "$conformance" != - ]; then
    within 90 "$conformance" wgpu_conforms --exact --nocapture
fi

step "done"
