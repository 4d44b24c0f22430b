"""What schemathesis loads to prepare requests and to judge answers (PYTHONPATH has this folder)."""

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
    "getOrder": [], "listOrderEvents": [], "payOrder": [], "cancelOrder": [],
    "shipOrder": ["pay"], "completeOrder": ["pay", "ship"],
}
BODIES = {
    "pay": {"payment_token": "tok_ok"},
    "ship": {"carrier": "PostNL", "tracking_number": "3SABCD012345678"},
}
ADDRESS = {"recipient": "A", "line1": "B", "city": "C", "postal_code": "1", "country": "NL"}


# An order in the state that an operation wants, by operation, until the operation was done to it.
READY = {}


@schemathesis.hook
def before_call(_context, case, _kwargs):
    """Puts an order in the right state, or a category without products, into the path: no generated id names one."""
    operation = case.operation.definition.raw.get("operationId")
    given = str((case.path_parameters or {}).get("id"))
    if operation == "deleteCategory" and given.isdecimal():
        category = {"slug": f"check-{uuid.uuid4()}", "name": "To be deleted"}
        url = f"{os.environ['SHOP']}/api/v1/categories"
        case.path_parameters["id"] = post(url, category, os.environ["ADMIN_TOKEN"])["id"]
    elif operation in BEFORE and UUID.fullmatch(given):
        try:
            order = READY.get(operation) or place_order(BEFORE[operation])
        except urllib.error.HTTPError as refused:
            print(f"no order for {operation}: {refused.read().decode()}", file=sys.stderr)
            return
        READY[operation] = case.path_parameters["id"] = order


@schemathesis.hook
def after_call(_context, case, response):
    """An order that has changed, or is not what an operation wants, is not tried again."""
    if case.method != "GET" and (response.status_code < 300 or response.status_code == 409):
        READY.pop(case.operation.definition.raw.get("operationId"), None)


def place_order(steps):
    """Returns the id of a new order that has taken these steps."""
    url, mine = f"{os.environ['SHOP']}/api/v1/orders", os.environ["ACCESS_TOKEN"]
    body = {"items": [{"product_id": int(os.environ["PRODUCT"]), "quantity": 1}], "shipping_address": ADDRESS}
    placed = post(url, body, mine)["id"]
    for step in steps:
        post(f"{url}/{placed}/{step}", BODIES[step], os.environ["ADMIN_TOKEN"] if step == "ship" else mine)
    return placed


@schemathesis.check
def problem_code_is_documented(_context, response, case):
    """A problem has one of the codes that the document lists for its status."""
    if not response.headers.get("content-type", [""])[0].startswith("application/problem+json"):
        return
    code = response.json()["code"]
    known = case.operation.definition.raw["responses"].get(str(response.status_code), {})
    if "$ref" in known:
        known = case.operation.schema.raw_schema["components"]["responses"][known["$ref"].rsplit("/", 1)[-1]]
    if code not in known.get("x-problem-codes", [code]):
        raise AssertionError(f"{code} is not among {known['x-problem-codes']}")
