"""The official OpenAI client against a served model.

usage: openai_check.py CTL MODEL_FOLDER [ADAPTER_FOLDER]
needs: openai, numpy

Serves MODEL_FOLDER (with ADAPTER_FOLDER, if given) by `CTL run` on a free port, and drives it as programs do: the
client's own defaults (base64), every form of input, dimensions, many inputs, errors as the client's exceptions,
keys, several threads at once, and an end by SIGTERM that loses no request. Prints one line a check; exits non-zero at
the first that fails.
"""

import base64
import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request

import numpy
import openai

KEY = "sk-motley-check"
START_SECONDS = 120


def check(condition, what):
    if not condition:
        raise SystemExit(f"FAILED: {what}")
    print(f"ok: {what}", flush=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve(ctl, model, adapter, folder):
    """Starts the server; gives the process and its address."""
    port = free_port()
    with open(os.path.join(folder, "keys.txt"), "w") as keys:
        keys.write(f"# one key a line\n{KEY}\n")
    document = f'''
version = 1
kind = "serve"
name = "check"
[resources]
backend = ["cpu"]
[model]
source = {json.dumps("file:" + os.path.abspath(model))}
max_length = 256
[api]
listen = "127.0.0.1:{port}"
keys_file = "keys.txt"
'''
    if adapter:
        document += f'[adapter]\nsource = {json.dumps("file:" + os.path.abspath(adapter))}\n'
    path = os.path.join(folder, "serve.toml")
    with open(path, "w") as file:
        file.write(document)
    output = os.path.join(folder, "output")
    process = subprocess.Popen([ctl, "run", path, "--output", output], stdout=sys.stderr, stderr=sys.stderr)
    return process, f"http://127.0.0.1:{port}"


def get(address, path):
    """Status and JSON of a path outside the client."""
    try:
        with urllib.request.urlopen(address + path, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def wait_until_ready(process, address):
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"FAILED: the server ended with {process.returncode} before it was ready")
        if get(address, "/ready")[0] == 200:
            return
        time.sleep(0.1)
    raise SystemExit("FAILED: the server was not ready in time")


def error_of(call):
    try:
        call()
    except openai.APIStatusError as error:
        return error
    return None


def check_inputs(client):
    texts = ["A man plays a harp.", "Rates were cut by 25 basis points.", "央行下调存款准备金率。"]
    create = lambda **options: client.embeddings.create(model="check", **options)
    default = create(input=texts)
    vectors = numpy.array([row.embedding for row in default.data], dtype=numpy.float32)
    check(vectors.shape[0] == 3 and vectors.shape[1] > 100, "the client's default call (base64) gives a vector a text")
    check([row.index for row in default.data] == [0, 1, 2], "vectors come in the order of the inputs")
    check(default.model == "check" and default.usage.prompt_tokens == default.usage.total_tokens > 10, "usage is counted")
    check(numpy.allclose(numpy.linalg.norm(vectors, axis=1), 1, atol=1e-5), "vectors have unit length")

    floats = create(input=texts, encoding_format="float")
    same = numpy.array([row.embedding for row in floats.data], dtype=numpy.float32)
    check(numpy.array_equal(vectors, same), "float and base64 carry the same bits")
    raw = client.embeddings.with_raw_response.create(model="check", input=texts[0], encoding_format="base64")
    text = json.loads(raw.text)["data"][0]["embedding"]
    decoded = numpy.frombuffer(base64.b64decode(text), dtype="<f4")
    check(numpy.array_equal(decoded, vectors[0]), "a text has the same bits alone and among others")
    check(raw.headers.get("x-request-id", "").startswith("req_"), "answers carry a request id")

    ids = [2023, 2003, 1037, 3231]
    one, many = create(input=ids).data, create(input=[ids, ids[:2]]).data
    check(len(one) == 1 and len(many) == 2 and one[0].embedding == many[0].embedding, "token ids, one list or several")
    check(create(input="this is a test").data[0].embedding == one[0].embedding, "a text equals its token ids")

    short = numpy.array(create(input=texts, dimensions=64).data[0].embedding)
    expected = vectors[0][:64] / numpy.linalg.norm(vectors[0][:64])
    check(short.shape == (64,) and numpy.allclose(short, expected, atol=1e-6), "dimensions cut and renormalise")

    bulk = create(input=[f"text number {number}" for number in range(2048)])
    last = create(input="text number 2047").data[0].embedding
    check(len(bulk.data) == 2048 and bulk.data[2047].embedding == last, "2048 inputs in one call, in order")


def check_errors(client, address):
    create = lambda **options: client.embeddings.create(**{"model": "check", **options})
    cases = [
        (lambda: create(input=""), openai.BadRequestError, "input", "an empty text is 400"),
        (lambda: create(input=["a"] * 2049), openai.BadRequestError, "input", "2049 inputs are 400"),
        (lambda: create(input=[[10**6]]), openai.BadRequestError, "input", "foreign token ids are 400"),
        (lambda: create(input="word " * 5000), openai.BadRequestError, "input", "a text beyond max_length is 400"),
        (lambda: create(input="a", dimensions=10**5), openai.BadRequestError, "dimensions", "too many dimensions are 400"),
        (lambda: create(input="a", model="other"), openai.NotFoundError, "model", "an unknown model is 404"),
    ]
    for call, kind, param, what in cases:
        error = error_of(call)
        check(isinstance(error, kind) and error.param == param and error.message, what)
    check("check_embedding_ctx_length=False" in error_of(cases[2][0]).message, "foreign ids: the remedy is named")
    stranger = openai.OpenAI(base_url=address + "/v1", api_key="wrong", max_retries=0)
    error = error_of(lambda: stranger.embeddings.create(model="check", input="a"))
    check(isinstance(error, openai.AuthenticationError) and error.code == "invalid_api_key", "a wrong key is 401")
    check("error" in json.loads(get(address, "/nowhere")[1]), "an unknown path has the nested error object")
    check([model.id for model in client.models.list()] == ["check"], "the model is listed")
    check(client.models.retrieve("check").id == "check", "the model can be asked for")
    check("serve_requests_total" in get(address, "/metrics")[1], "metrics are there")


def check_concurrency(client):
    texts = [f"sentence {number} of a list with {number % 7} changes" for number in range(64)]
    embed = lambda text: client.embeddings.create(model="check", input=text).data[0].embedding
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        parallel = list(pool.map(embed, texts))
    together = [row.embedding for row in client.embeddings.create(model="check", input=texts).data]
    check(parallel == together, "64 concurrent requests have the bits of one request")


def check_end(process, address):
    """SIGTERM while requests are in flight: each is answered, or told to come back."""
    client = openai.OpenAI(base_url=address + "/v1", api_key=KEY, max_retries=0, timeout=60)
    answered, refused, lost = [], [], []
    ending = threading.Event()

    def call(_):
        while True:
            started_before_the_end = not ending.is_set()
            try:
                client.embeddings.create(model="check", input=["a sentence of some length to embed"] * 64)
                answered.append(1)
            except openai.InternalServerError as error:
                refused.append(error.response.headers.get("retry-after-ms"))
                return
            except openai.APIConnectionError:
                (lost if started_before_the_end else refused).append("connection")
                return

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(call, number) for number in range(4)]
        time.sleep(1.5)
        ending.set()
        process.send_signal(signal.SIGTERM)
        for finished in calls:
            finished.result(timeout=60)
    check(len(answered) > 0 and not lost, f"no request in flight was lost ({len(answered)} answered, {len(refused)} refused)")
    process.wait(timeout=60)
    check(get(address, "/health")[0] == 0, "the server has ended")


def main():
    ctl, model, *rest = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        process, address = serve(ctl, model, rest[0] if rest else None, folder)
        try:
            wait_until_ready(process, address)
            client = openai.OpenAI(base_url=address + "/v1", api_key=KEY, timeout=120)
            check_inputs(client)
            check_errors(client, address)
            check_concurrency(client)
            check_end(process, address)
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout=20)
                except subprocess.TimeoutExpired:
                    process.kill()


if __name__ == "__main__":
    main()
