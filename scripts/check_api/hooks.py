"""The hooks of schemathesis that prepare requests and check responses (PYTHONPATH has this folder)."""

import os
import re
import sys
import urllib.error
import uuid

import schemathesis

from ask import post

UUID = re.compile("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


@schemathesis.hook
def map_body(_context, body):
    """Converts 3.0 to 3. JSON Schema does not distinguish them; the API requires integers without a fraction."""
    if isinstance(body, dict):
        return {name: map_body(_context, value) for name, value in body.items()}
    if isinstance(body, list):
        return [map_body(_context, value) for value in body]
    if isinstance(body, float) and body.is_integer():
        return int(body)
    return body


# The steps that an order needs before an operation.
BEFORE = {
    "getOrder": [], "listOrderEvents": [], "payOrder": [], "cancelOrder": [],
    "shipOrder": ["pay"], "completeOrder": ["pay", "ship"],
}
BODIES = {
    "pay": {"payment_token": "tok_ok"},
    "ship": {"carrier": "PostNL", "tracking_number": "3SABCD012345678"},
}
ADDRESS = {"recipient": "A", "line1": "B", "city": "C", "postal_code": "1", "country": "NL"}


# Orders in the state that an operation requires, by operation, until the operation has succeeded.
READY = {}


@schemathesis.hook
def before_call(_context, case, _kwargs):
    """Replaces a generated id in the path by an order in the required state, or by a category without products."""
    operation = case.operation.definition.raw.get("operationId")
    path_id = str((case.path_parameters or {}).get("id"))
    if operation == "deleteCategory" and path_id.isdecimal():
        category = {"slug": f"check-{uuid.uuid4()}", "name": "To be deleted"}
        url = f"{os.environ['SHOP']}/api/v1/categories"
        case.path_parameters["id"] = post(url, category, os.environ["ADMIN_TOKEN"])["id"]
    elif operation in BEFORE and UUID.fullmatch(path_id):
        try:
            order = READY.get(operation) or place_order(BEFORE[operation])
        except urllib.error.HTTPError as refused:
            print(f"no order for {operation}: {refused.read().decode()}", file=sys.stderr)
            return
        READY[operation] = case.path_parameters["id"] = order


@schemathesis.hook
def after_call(_context, case, response):
    """Drops an order that has changed or was refused for its state."""
    if case.method != "GET" and (response.status_code < 300 or response.status_code == 409):
        READY.pop(case.operation.definition.raw.get("operationId"), None)


def place_order(steps):
    """Places an order, applies the steps to it, and returns its id."""
    url, mine = f"{os.environ['SHOP']}/api/v1/orders", os.environ["ACCESS_TOKEN"]
    body = {"items": [{"product_id": int(os.environ["PRODUCT"]), "quantity": 1}], "shipping_address": ADDRESS}
    placed = post(url, body, mine)["id"]
    for step in steps:
        post(f"{url}/{placed}/{step}", BODIES[step], os.environ["ADMIN_TOKEN"] if step == "ship" else mine)
    return placed


@schemathesis.check
def problem_code_is_documented(_context, response, case):
    """Checks that the code of a problem is one that the document lists for its status."""
    if not response.headers.get("content-type", [""])[0].startswith("application/problem+json"):
        return
    code = response.json()["code"]
    documented = case.operation.definition.raw["responses"].get(str(response.status_code), {})
    if "$ref" in documented:
        documented = case.operation.schema.raw_schema["components"]["responses"][documented["$ref"].rsplit("/", 1)[-1]]
    if code not in documented.get("x-problem-codes", [code]):
        raise AssertionError(f"{code} is not among {documented['x-problem-codes']}")
