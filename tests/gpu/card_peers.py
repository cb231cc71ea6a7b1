"""PyTorch on the card: encoding and adapter training of the shapes that card.sh measures, bf16, random weights.

usage: card_peers.py encode|train
needs: torch, transformers, peft
Token ids are on the card before the clock starts, so that no tokenizer is measured; every text has the same length, so
that nothing is padded. Encoding is what sentence-transformers runs: the model, mean pooling, normalisation.
"""
import json
import sys
import time

import torch
from transformers import BertConfig, BertModel

SHAPES = {"bge-small": (384, 12, 12, 1536), "bge-base": (768, 12, 12, 3072), "bge-large": (1024, 24, 16, 4096)}
TOKENS = 16384


def model(name):
    hidden, layers, heads, inner = SHAPES[name]
    config = BertConfig(hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=inner)
    config._attn_implementation = "sdpa"
    return BertModel(config, add_pooling_layer=False).to("cuda", torch.bfloat16)


def embed(m, ids, mask):
    x = m(input_ids=ids, attention_mask=mask).last_hidden_state
    weight = mask.unsqueeze(-1).to(x.dtype)
    return torch.nn.functional.normalize(((x * weight).sum(1) / weight.sum(1)).float(), dim=1)


def batch(length):
    ids = torch.randint(0, 30522, (TOKENS // length, length), device="cuda")
    return ids, torch.ones_like(ids)


def timed(work, rounds):
    work()
    work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(rounds):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / rounds


def say(what, seconds, tokens):
    line = {"implementation": f"PyTorch {torch.__version__} {what}", "tokens_per_s": round(tokens / seconds),
            "ms": round(seconds * 1e3, 3), "peak_memory_mib": torch.cuda.max_memory_allocated() >> 20}
    print(json.dumps(line), flush=True)


def encode():
    for name in SHAPES:
        m = model(name).eval()
        for length in (512, 50):
            ids, mask = batch(length)
            with torch.inference_mode():
                say(f"bf16 encode {name} x{length}", timed(lambda: embed(m, ids, mask), 20), ids.numel())


def train():
    from peft import LoraConfig, get_peft_model

    targets = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
    m = get_peft_model(model("bge-base"), LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=targets))
    m.train()
    parameters = [p for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-4)
    ids, mask = batch(512)
    half = len(ids) // 2
    label = torch.rand(half, device="cuda")

    def step():
        e = embed(m, ids, mask)
        c = (e[:half] * e[half:]).sum(1) * 20
        d = c[:, None] - c[None, :]
        pairs = d[label[:, None] < label[None, :]]
        loss = torch.logsumexp(torch.cat([torch.zeros(1, device="cuda"), pairs]), 0)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()

    say("+ PEFT bf16 lora bge-base x512", timed(step, 10), ids.numel())


{"encode": encode, "train": train}[sys.argv[1]]()
