#!/usr/bin/env python3
"""Writes this folder's data files from glossary.txt and the templates below.

usage: generate.py [--baseline | --check]

Sentence pairs are scored 0 to 5:
  5  the same concept, in other words or in another statement
  1  another concept of the same family: many shared words, another meaning
  0  a concept of another family
Families, and so all concepts, are disjoint between train, validation and test; so are the templates. About one pair
in seven is Chinese. The same input always gives the same files.

--baseline prints how well word overlap alone does on the test split; --check fails if the files differ from what
would be written. No run goes on when splits have a concept or a template in common.
"""
import json, random, re, sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SEED = 20260401
PAIRS = {"train": 18, "validation": 10, "test": 16}  # a concept
TRIPLETS = 16  # a concept of train
SHARE_ZH = 0.15

# Templates by split and kind of statement; {f} is a form of the concept, {F} the same with a capital letter.
TEMPLATES = {
    "train": {
        "news": ["On Monday the board reported {f}.", "{F} was reported on Monday.", "The latest bulletin speaks of {f}.",
                 "According to the newest bulletin, there is {f}."],
        "question": ["What does {f} mean for savers?", "How are savers affected by {f}?", "Please explain {f} to a saver."],
        "opinion": ["Critics consider {f} a mistake.", "{F} is wrong, say its critics.", "In the critics' eyes {f} does harm."],
        "record": ["{F} appears in the minutes of the meeting.", "The minutes of the meeting mention {f}.",
                   "In the minutes one reads of {f}."],
    },
    "validation": {
        "news": ["The agency informed its readers about {f}.", "Readers were told of {f} by the agency."],
        "question": ["Why does {f} matter to us?", "Tell us the importance of {f}."],
        "opinion": ["Most traders welcome {f}.", "{F} pleases the majority of traders."],
    },
    "test": {
        "news": ["Yesterday's headlines were about {f}.", "{F} made the headlines yesterday.", "The papers wrote on {f} yesterday."],
        "question": ["When should a treasurer expect {f}?", "A treasurer wants to know when {f} comes.",
                     "Is {f} something a treasurer must foresee?"],
        "opinion": ["The chief economist had warned of {f}.", "{F} is what the chief economist had warned of.",
                    "There had been warnings of {f} from the chief economist."],
    },
}
TEMPLATES_ZH = {
    "train": {
        "news": ["董事会周一通报了{f}。", "周一的通报提到{f}。", "最新公告涉及{f}。"],
        "question": ["{f}对储户意味着什么？", "储户会怎样受到{f}的影响？"],
        "opinion": ["批评者认为{f}是个错误。", "在批评者看来，{f}有害。"],
    },
    "validation": {"news": ["通讯社向读者介绍了{f}。", "读者从通讯社得知{f}。"], "question": ["{f}为什么重要？", "请说明{f}的重要性。"]},
    "test": {
        "news": ["昨天的头条是{f}。", "{f}昨天登上头条。"],
        "opinion": ["首席经济学家曾警告{f}。", "对{f}的警告来自首席经济学家。"],
    },
}
# Families of each split, by the order of a seeded shuffle.
SHARES = {"test": 0.28, "validation": 0.08}


class Draw:
    """A seeded generator that uses nothing but `random()`, which is the same in every Python."""

    def __init__(self, seed):
        self.random = random.Random(seed).random

    def index(self, count):
        return int(self.random() * count)

    def one(self, items):
        return items[self.index(len(items))]

    def two(self, items):
        first = self.index(len(items))
        return items[first], items[(first + 1 + self.index(len(items) - 1)) % len(items)]

    def shuffled(self, items):
        items = list(items)
        for i in range(len(items) - 1, 0, -1):
            j = self.index(i + 1)
            items[i], items[j] = items[j], items[i]
        return items


def read_glossary():
    """Families as lists of concepts."""
    families, domain = [], None
    for line in (HERE / "glossary.txt").read_text(encoding="utf-8").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if line.startswith("["):
            domain = line.strip("[]")
        elif not line.startswith("  "):
            families.append({"name": line.strip(), "domain": domain, "concepts": []})
        else:
            name, rest = line.strip().split(": ", 1)
            forms, chinese, definition = (part.strip() for part in rest.split("|"))
            families[-1]["concepts"].append({
                "id": name, "forms": forms.split("; "), "zh": chinese.split("; "), "definition": definition})
    return families


def split_families(families, draw):
    order = draw.shuffled(families)
    counts = {name: round(share * len(order)) for name, share in SHARES.items()}
    test, validation = counts["test"], counts["validation"]
    return {"test": order[:test], "validation": order[test:test + validation], "train": order[test + validation:]}


def say(template, form):
    return template.replace("{F}", form[0].upper() + form[1:]).replace("{f}", form)


def make_pair(draw, split, families, family, concept, score):
    chinese = draw.random() < SHARE_ZH
    key, templates = ("zh", TEMPLATES_ZH[split]) if chinese else ("forms", TEMPLATES[split])
    other = concept
    if score == 1:
        other = draw.one([c for c in family["concepts"] if c is not concept])
    elif score == 0:
        other = draw.one(draw.one([f for f in families if f is not family])["concepts"])
    kinds = list(templates)
    if score == 5 and draw.random() < 0.5:
        first, second = (draw.one(templates[kind]) for kind in draw.two(kinds))
    elif score == 5:
        first, second = draw.two(templates[draw.one(kinds)])
    else:
        # Near-misses often share the statement, strangers seldom, so that neither gives the score away.
        same = draw.random() < (0.5 if score == 1 else 0.1)
        kind = draw.one(kinds)
        second_kind = kind if same else draw.one(kinds)
        first, second = draw.one(templates[kind]), draw.one(templates[second_kind])
    if score == 5:
        left, right = draw.two(concept[key])
        # Half of what means the same keeps its words: rewording is learned from the other half.
        if draw.random() < 0.5:
            right = left
    else:
        left = draw.one(concept[key])
        # Near-misses prefer the form that looks alike.
        index = concept[key].index(left)
        look_alike = score == 1 and draw.random() < 0.6 and index < len(other[key])
        right = other[key][index] if look_alike else draw.one(other[key])
    return {"sentence1": say(first, left), "sentence2": say(second, right), "score": score}


def make_split(draw, split, families):
    mix = [5, 1, 0, 5, 1, 0, 5, 1, 5, 0, 5, 1, 0, 5, 1, 5]
    rows, seen = [], set()
    for family in families:
        for concept in family["concepts"]:
            made = 0
            for attempt in range(10 * PAIRS[split]):
                if made == PAIRS[split]:
                    break
                row = make_pair(draw, split, families, family, concept, mix[(made + attempt) % len(mix)])
                key = (row["sentence1"], row["sentence2"])
                if key in seen or key[::-1] in seen or key[0] == key[1]:
                    continue
                seen.add(key)
                rows.append(row)
                made += 1
    return draw.shuffled(rows)


def make_triplet(draw, family, concept):
    chinese = draw.random() < SHARE_ZH
    key, templates = ("zh", TEMPLATES_ZH["train"]) if chinese else ("forms", TEMPLATES["train"])
    kinds = list(templates)
    index = draw.index(len(concept[key]))
    left = concept[key][index]
    right = left if draw.random() < 0.5 else draw.one(concept[key])
    other = draw.one([c for c in family["concepts"] if c is not concept])
    near = other[key][index] if index < len(other[key]) else draw.one(other[key])
    kind = draw.one(kinds)
    first, same_kind = draw.two(templates[kind])
    return {
        "anchor": say(first, left),
        "positive": say(draw.one(templates[draw.one(kinds)]), right),
        "negative": say(draw.one([first, same_kind]), near),
    }


def make_triplets(draw, families):
    """Anchor, positive (the same concept), negative (a near-miss in the anchor's own words where there are some)."""
    rows, seen = [], set()
    for family in families:
        for concept in family["concepts"]:
            made = 0
            for _ in range(10 * TRIPLETS):
                if made == TRIPLETS:
                    break
                row = make_triplet(draw, family, concept)
                texts = tuple(row.values())
                if texts in seen or len(set(texts)) < len(texts):
                    continue
                seen.add(texts)
                rows.append(row)
                made += 1
    return draw.shuffled(rows)


def retrieval(families):
    """Definitions are the corpus, forms in a question are the queries; near-misses are the hard part of the corpus."""
    corpus, queries, qrels = [], [], ["query-id\tcorpus-id\tscore"]
    for family in families:
        for concept in family["concepts"]:
            corpus.append({"_id": concept["id"], "title": "", "text": concept["definition"]})
            for number, form in enumerate(concept["forms"]):
                query = f"{concept['id']}-{number}"
                queries.append({"_id": query, "text": say("What is {f}?", form)})
                qrels.append(f"{query}\t{concept['id']}\t1")
    return corpus, queries, qrels


def check_disjoint(splits):
    """No concept, no form of one and no template may stand in two splits: the test would be learned by heart."""
    seen = {}
    for split, families in splits.items():
        concepts = [c for family in families for c in family["concepts"]]
        words_of = {text for c in concepts for text in [c["id"], *c["forms"], *c["zh"]]}
        templates = {text for table in (TEMPLATES, TEMPLATES_ZH) for texts in table[split].values() for text in texts}
        for text in words_of | templates:
            if text in seen:
                raise SystemExit(f"`{text}` stands in {seen[text]} and in {split}")
        seen.update((text, split) for text in words_of | templates)


def lines(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def build():
    families = read_glossary()
    draw = Draw(SEED)
    splits = split_families(families, draw)
    check_disjoint(splits)
    rows = {name: make_split(draw, name, splits[name]) for name in ("train", "validation", "test")}
    files = {f"{name}.jsonl": lines(rows[name]) for name in rows}
    files["triplets.jsonl"] = lines(make_triplets(draw, splits["train"]))
    labelled = [row for row in rows["test"] if row["score"] in (5, 1)]
    files["pairs.jsonl"] = lines(
        {"sentence1": r["sentence1"], "sentence2": r["sentence2"], "label": int(r["score"] == 5)} for r in labelled)
    corpus, queries, qrels = retrieval(splits["test"])
    files["retrieval/corpus.jsonl"] = lines(corpus)
    files["retrieval/queries.jsonl"] = lines(queries)
    files["retrieval/qrels.tsv"] = "\n".join(qrels) + "\n"
    return files, rows


def words(text):
    """Words of Latin letters and single Chinese characters."""
    return set(re.findall(r"[a-z0-9'-]+|[\u4e00-\u9fff]", text.lower()))


def ranks(values):
    order = sorted(range(len(values)), key=values.__getitem__)
    result, start = [0.0] * len(values), 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for place in order[start:end]:
            result[place] = (start + end - 1) / 2
        start = end
    return result


def spearman(x, y):
    x, y = ranks(x), ranks(y)
    mx, my = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mx) * (b - my) for a, b in zip(x, y))
    return covariance / (sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y)) ** 0.5


def baseline(rows):
    overlap = []
    for row in rows:
        a, b = words(row["sentence1"]), words(row["sentence2"])
        overlap.append(len(a & b) / max(len(a | b), 1))
    return spearman(overlap, [row["score"] for row in rows])


def main():
    files, rows = build()
    if "--baseline" in sys.argv:
        print(f"word overlap (Jaccard), Spearman on test.jsonl: {baseline(rows['test']):.4f}")
        return 0
    if "--check" in sys.argv:
        stale = [name for name, text in files.items()
                 if not (HERE / name).is_file() or (HERE / name).read_text(encoding="utf-8") != text]
        print("stale: " + ", ".join(stale) if stale else "all files are as generated")
        return 1 if stale else 0
    for name, text in files.items():
        (HERE / name).parent.mkdir(exist_ok=True)
        (HERE / name).write_text(text, encoding="utf-8")
    print(", ".join(f"{name} {len(text.splitlines())}" for name, text in files.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
