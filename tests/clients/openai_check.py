"""The official OpenAI client against a served model.

usage: openai_check.py CTL MODEL_FOLDER [ADAPTER_FOLDER]
needs: openai, numpy

Serves MODEL_FOLDER (with ADAPTER_FOLDER, if given) by `CTL run` on port 0, takes the endpoint that it prints, and
drives it as programs do: the client's own defaults (base64), every form of input, dimensions, many inputs, errors as
the client's exceptions, keys, several threads at once, and an end by SIGTERM that loses no request. Prints one line a
check; exits non-zero at the first that fails.
"""

import base64
import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request

import numpy
import openai

KEY = "sk-motley-check"

# How long anything here may take before it counts as hung.
PATIENCE_SECONDS = 120


def check(condition, what):
    if not condition:
        raise SystemExit(f"FAILED: {what}")
    print(f"ok: {what}", flush=True)


def serve(ctl, model, adapter, folder):
    """Starts the server; gives the process and its address once it is known, which is when the model is loaded."""
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
listen = "127.0.0.1:0"
keys_file = "keys.txt"
'''
    if adapter:
        document += f'[adapter]\nsource = {json.dumps("file:" + os.path.abspath(adapter))}\n'
    path = os.path.join(folder, "serve.toml")
    with open(path, "w") as file:
        file.write(document)
    output = os.path.join(folder, "output")
    command = [ctl, "run", "--json", path, "--output", output]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sys.stderr, text=True)
    hung = threading.Timer(PATIENCE_SECONDS, process.terminate)
    hung.start()
    line = process.stdout.readline()
    hung.cancel()
    if not line:
        raise SystemExit(f"FAILED: the server ended with {process.wait()} before it said where it is")
    return process, json.loads(line)["endpoint"].removesuffix("/v1")


def get(address, path):
    """Status and JSON of a path outside the client."""
    try:
        with urllib.request.urlopen(address + path, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


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
    """SIGTERM while requests are in flight: each is answered, or refused with 503 and told when to come back."""
    client = openai.OpenAI(base_url=address + "/v1", api_key=KEY, max_retries=0, timeout=PATIENCE_SECONDS)
    answered, refused, lost = [], [], []
    ending = threading.Event()
    callers = 4
    # Every caller has had an answer: all are in the middle of their calls.
    busy = threading.Barrier(callers + 1)

    def call(_):
        first = True
        while True:
            began_before_the_end = not ending.is_set()
            try:
                client.embeddings.create(model="check", input=["a sentence of some length to embed"] * 64)
                answered.append(began_before_the_end)
            except openai.APIStatusError as error:
                (refused if error.status_code == 503 else lost).append(error)
                return
            except openai.APIConnectionError as error:
                # Once the server has ended nobody listens: what began after the signal may find that.
                if began_before_the_end:
                    lost.append(error)
                return
            if first:
                busy.wait(PATIENCE_SECONDS)
                first = False

    with concurrent.futures.ThreadPoolExecutor(callers) as pool:
        calls = [pool.submit(call, number) for number in range(callers)]
        busy.wait(PATIENCE_SECONDS)
        ending.set()
        process.send_signal(signal.SIGTERM)
        for finished in calls:
            finished.result(timeout=PATIENCE_SECONDS)
    check(not lost, f"no request in flight was lost ({len(answered)} answered, {len(refused)} refused): {lost}")
    hints = [error.response.headers.get("retry-after-ms") for error in refused]
    check(all(hint and int(hint) > 0 for hint in hints), "each refusal says when to come back")
    check(all(error.code == "draining" for error in refused), "each refusal says why")
    check(process.wait(timeout=PATIENCE_SECONDS) == 0, "a server that answered every request ends with 0")
    check(get(address, "/health")[0] == 0, "the server has ended")


def main():
    ctl, model, *rest = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        process, address = serve(ctl, model, rest[0] if rest else None, folder)
        try:
            check(get(address, "/ready")[0] == 200, "a server that says where it is, is ready")
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
