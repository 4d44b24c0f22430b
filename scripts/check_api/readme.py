"""Runs the commands of "A first order" in README.md twice, each time in a new shell.

readme.py RUN_FILE
"""

import json
import re
import subprocess
import sys
from pathlib import Path

from ask import read

README = Path(__file__).resolve().parents[2] / "README.md"
# The address of the shop in the commands.
ADDRESS = "http://127.0.0.1:8080"


def answers(text):
    """Parses consecutive JSON documents."""
    decoder, at, found = json.JSONDecoder(), 0, []
    while at < len(text):
        answer, at = decoder.raw_decode(text, at)
        found.append(answer)
        at += len(text[at:]) - len(text[at:].lstrip())
    return found


def main(run_file):
    _, url = read(run_file)
    section = README.read_text().split("## A first order", 1)[1].split("\n## ", 1)[0]
    commands = next(re.finditer(r"^```sh\n(.*?)^```$", section, re.M | re.S))[1]
    if ADDRESS not in commands:
        sys.exit(f"README.md: the commands are not for {ADDRESS}")
    commands = commands.replace(ADDRESS, url)
    for time in ("first", "second"):
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", commands], text=True, capture_output=True, timeout=60)
        told = f"README.md, the {time} time:\n{done.stdout}{done.stderr}"
        if done.returncode != 0:
            sys.exit(told)
        shown = answers(done.stdout.strip())
        events = shown[-1].get("items", [])
        if any("code" in answer for answer in shown) or [event["status"] for event in events] != ["pending", "paid"]:
            sys.exit(told)
    print("the first order of README.md, twice")


if __name__ == "__main__":
    main(*sys.argv[1:])
