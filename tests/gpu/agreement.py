"""The same sentences on every backend of this machine: largest difference to the cpu, lowest cosine, Spearman.

usage: agreement.py CTL MODEL_DIR STS.jsonl
STS.jsonl has sentence1, sentence2, score. Needs numpy. Prints one JSON line a backend; one that is not here is skipped.
"""
import json
import os
import subprocess
import sys
import tempfile

import numpy as np

ctl, model, path = sys.argv[1:4]
rows = [json.loads(line) for line in open(path)]
scores = np.array([row["score"] for row in rows], dtype=float)
folder = tempfile.mkdtemp()
texts = os.path.join(folder, "texts.jsonl")
with open(texts, "w") as file:
    for row in rows:
        for key in ("sentence1", "sentence2"):
            file.write(json.dumps({"text": row[key]}) + "\n")


def ranks(x):
    order = np.argsort(x, kind="stable")
    ordered = x[order]
    result = np.empty(len(x))
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    for start, end in zip(starts, np.r_[starts[1:], len(x)]):
        result[order[start:end]] = (start + end - 1) / 2
    return result


def spearman(vectors):
    a, b = vectors[0::2].astype(float), vectors[1::2].astype(float)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return float(np.corrcoef(ranks(cosine), ranks(scores))[0, 1])


wanted = None
for backend, precision in (("cpu", "f32"), ("cuda", "f32"), ("cuda", "bf16"), ("wgpu", "f32")):
    out = os.path.join(folder, f"{backend}-{precision}.npy")
    command = [ctl, "embed", f"file:{model}", texts, "-o", out, "--backend", backend, "--precision", precision]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        print(f"skipped: {backend} {precision}: {done.stderr.strip().splitlines()[-2:]}", flush=True)
        continue
    vectors = np.load(out)
    wanted = vectors if wanted is None else wanted
    cosine = (vectors * wanted).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(wanted, axis=1)
    line = {"backend": backend, "precision": precision, "texts": len(vectors),
            "largest_difference": float(np.abs(vectors - wanted).max()), "lowest_cosine": float(cosine.min()),
            "spearman": round(spearman(vectors), 5)}
    print(json.dumps(line), flush=True)
