"""What scripts/check-api asks: the gateway's url, its document, a fresh access token of somebody.

check_api.py RUN_FILE url | document | product | token (customer | admin) | answered

It is also what schemathesis loads to prepare requests.
"""

import json
import os
import re
import sys
import urllib.error
import urllib.request
import uuid

import schemathesis

PASSWORD = "a password for one run"


def post(url, body, signed_in=None):
    headers = {"content-type": "application/json"}
    if signed_in:
        headers["authorization"] = f"Bearer {signed_in}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def token(url, name, password):
    return post(f"{url}/api/v1/auth/login", {"username": name, "password": password})["access_token"]


def customer(url):
    """Somebody new each time: a try that spends their password tries, or ends their sessions, harms nobody else."""
    name = f"check-{uuid.uuid4().hex[:20]}"
    post(f"{url}/api/v1/auth/register", {"username": name, "email": f"{name}@example.com", "password": PASSWORD})
    return token(url, name, PASSWORD)


def get(url):
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


UUID = re.compile("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# A run in which everything is refused proves nothing. These need a secret of somebody's, or are no HTTP at all.
MAY_NEVER_SUCCEED = {"openSocket", "endSession", "changePassword", "refresh", "login"}
COUNT = re.compile(r'^http_server_request_duration_seconds_count\{(.*)\} (\d+)')


def answered(url):
    """Whether every operation was answered with success, as the gateway's own metrics tell."""
    successes = set()
    for line in get(f"{url}/metrics").splitlines():
        if found := COUNT.match(line):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', found[1]))
            if labels["status"].startswith("2"):
                successes.add((labels["method"].lower(), labels["route"]))
    paths = json.loads(get(f"{url}/openapi.json"))["paths"]
    operations = {(method, path): it["operationId"] for path, of in paths.items() for method, it in of.items()}
    never = {name for key, name in operations.items() if key not in successes}
    succeeded = len(operations) - len(never)
    print(f"{succeeded} of {len(operations)} operations succeeded; never: {', '.join(sorted(never))}")
    sys.exit(bool(never - MAY_NEVER_SUCCEED))


def main(run_file, what, who=None):
    with open(run_file, encoding="utf-8") as file:
        run = json.load(file)
    url = run["gateways"][0]["url"]
    if what == "url":
        print(url)
    elif what == "document":
        print(get(f"{url}/openapi.json"))
    elif what == "product":
        # With more stock than all tries together can buy.
        product = {"sku": f"check-{uuid.uuid4()}", "name": "To be ordered", "price": 1, "stock": 1_000_000_000}
        print(post(f"{url}/api/v1/products", product, os.environ["ADMIN_TOKEN"])["id"])
    elif what == "answered":
        answered(url)
    elif who == "admin":
        print(token(url, run["admin"]["username"], run["admin"]["password"]))
    else:
        print(customer(url))


@schemathesis.hook
def map_body(_context, body):
    """Writes 3.0 as 3. To JSON Schema they are the same; the API wants integers written as such."""
    if isinstance(body, dict):
        return {name: map_body(_context, value) for name, value in body.items()}
    if isinstance(body, list):
        return [map_body(_context, value) for value in body]
    if isinstance(body, float) and body.is_integer():
        return int(body)
    return body


# What must have happened to an order before a step of its life can be taken.
BEFORE = {
    "showOrder": [], "listOrderEvents": [], "payOrder": [], "cancelOrder": [],
    "shipOrder": ["pay"], "completeOrder": ["pay", "ship"],
}
BODIES = {
    "pay": {"payment_token": "tok_ok"},
    "ship": {"carrier": "PostNL", "tracking_number": "3SABCD012345678"},
}
ADDRESS = {"recipient": "A", "line1": "B", "city": "C", "postal_code": "1", "country": "NL"}


@schemathesis.hook
def before_call(_context, case, _kwargs):
    """Puts an order in the right state, or a category without products, into the path: no generated id names one."""
    operation = case.operation.definition.raw.get("operationId")
    steps = BEFORE.get(operation)
    given = str((case.path_parameters or {}).get("id"))
    url, mine, admin = os.environ["SHOP"], os.environ["ACCESS_TOKEN"], os.environ["ADMIN_TOKEN"]
    if operation == "deleteCategory" and given.isdecimal():
        category = {"slug": f"check-{uuid.uuid4()}", "name": "To be deleted"}
        case.path_parameters["id"] = post(f"{url}/api/v1/categories", category, admin)["id"]
        return
    if steps is None or not UUID.fullmatch(given):
        return
    order = {"items": [{"product_id": int(os.environ["PRODUCT"]), "quantity": 1}], "shipping_address": ADDRESS}
    try:
        placed = post(f"{url}/api/v1/orders", order, mine)["id"]
        for step in steps:
            token_of_step = admin if step == "ship" else mine
            post(f"{url}/api/v1/orders/{placed}/{step}", BODIES[step], token_of_step)
    except urllib.error.HTTPError as refused:
        print(f"no order to try {steps} on: {refused.read().decode()}", file=sys.stderr)
        return
    case.path_parameters["id"] = placed


if __name__ == "__main__":
    main(*sys.argv[1:])
