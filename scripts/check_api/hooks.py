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
