"""Queries of scripts/check-api to a running shop.

ask.py RUN_FILE url | document NAME | product | token (customer | admin) | answered
"""

import json
import os
import re
import sys
import urllib.request
import uuid

PASSWORD = "a password for one run"


def post(url, body, signed_in=None):
    headers = {"content-type": "application/json"}
    if signed_in:
        headers["authorization"] = f"Bearer {signed_in}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def token(url, name, password):
    return post(f"{url}/api/v1/auth/login", {"username": name, "password": password})["access_token"]


def customer(url):
    """Registers a new customer, so that used-up password attempts and ended sessions do not affect other checks."""
    name = f"check-{uuid.uuid4().hex[:20]}"
    post(f"{url}/api/v1/auth/register", {"username": name, "email": f"{name}@example.com", "password": PASSWORD})
    return token(url, name, PASSWORD)


# Operations that need a user's secret, or that are not plain HTTP. All others must succeed at least once.
MAY_NEVER_SUCCEED = {"openSocket", "streamEvents", "streamAllEvents", "revokeSession", "changePassword", "refresh", "login"}
COUNT = re.compile(r'^http_server_request_duration_seconds_count\{(.*)\} (\d+)')


def answered(url):
    """Checks by the gateway's metrics that every operation succeeded at least once."""
    successes = set()
    for line in get(f"{url}/metrics").splitlines():
        if match := COUNT.match(line):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', match[1]))
            # Without a storefront, the success of the root is a redirect.
            status = labels["http_response_status_code"]
            if status.startswith("2") or status == "307":
                successes.add((labels["http_request_method"].lower(), labels["http_route"]))
    paths = json.loads(get(f"{url}/openapi.json"))["paths"]
    operations = {(method, path): it["operationId"] for path, of in paths.items() for method, it in of.items()}
    never = {name for key, name in operations.items() if key not in successes}
    succeeded = len(operations) - len(never)
    print(f"{succeeded} of {len(operations)} operations succeeded; never: {', '.join(sorted(never))}")
    sys.exit(bool(never - MAY_NEVER_SUCCEED))


def read(run_file):
    """Returns the run file and the URL of the first gateway."""
    with open(run_file, encoding="utf-8") as file:
        run = json.load(file)
    return run, run["gateways"][0]["url"]


def main(run_file, what, which=None):
    run, url = read(run_file)
    if what == "url":
        print(url)
    elif what == "document":
        print(get(f"{url}/{which}"))
    elif what == "product":
        # The stock is more than all requests together can buy.
        product = {"sku": f"check-{uuid.uuid4()}", "name": "To be ordered", "price": 1, "stock": 1_000_000_000}
        print(post(f"{url}/api/v1/products", product, os.environ["ADMIN_TOKEN"])["id"])
    elif what == "answered":
        answered(url)
    elif which == "admin":
        print(token(url, run["admin"]["username"], run["admin"]["password"]))
    else:
        print(customer(url))


if __name__ == "__main__":
    main(*sys.argv[1:])
