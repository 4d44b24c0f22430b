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


def parse_documents(text):
    """Parses consecutive JSON documents."""
    decoder, at, documents = json.JSONDecoder(), 0, []
    while at < len(text):
        document, at = decoder.raw_decode(text, at)
        documents.append(document)
        at += len(text[at:]) - len(text[at:].lstrip())
    return documents


def main(run_file):
    _, url = read(run_file)
    section = README.read_text().split("## A first order", 1)[1].split("\n## ", 1)[0]
    commands = next(re.finditer(r"^```sh\n(.*?)^```$", section, re.M | re.S))[1]
    if ADDRESS not in commands:
        sys.exit(f"README.md: the commands are not for {ADDRESS}")
    commands = commands.replace(ADDRESS, url)
    for time in ("first", "second"):
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", commands], text=True, capture_output=True, timeout=60)
        output = f"README.md, the {time} time:\n{done.stdout}{done.stderr}"
        if done.returncode != 0:
            sys.exit(output)
        responses = parse_documents(done.stdout.strip())
        events = responses[-1].get("items", [])
        if any("code" in response for response in responses) or [event["status"] for event in events] != ["pending", "paid"]:
            sys.exit(output)
    print("the first order of README.md, twice")


if __name__ == "__main__":
    main(*sys.argv[1:])
