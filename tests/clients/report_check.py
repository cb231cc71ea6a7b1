"""Fails unless a training's report.json says that every task got better.

Usage: report_check.py REPORT
"""

import json
import sys


def main_scores(results):
    return {result["task_name"]: result["scores"]["test"][0]["main_score"] for result in results}


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        report = json.load(file)
    before, after = main_scores(report["before"]), main_scores(report["results"])
    assert before and before.keys() == after.keys(), (before, after)
    for task, score in after.items():
        assert score > before[task], f"{task}: {before[task]:.4f} before, {score:.4f} after training"
        print(f"{task}: {before[task]:.4f} before, {score:.4f} after training")


if __name__ == "__main__":
    main()
