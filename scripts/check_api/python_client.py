"""Places and pays an order with the client that openapi-python-client generates: python_client.py RUN_FILE FOLDER.

FOLDER has the client's package, `shoppee_client`.
"""

import sys
import uuid
from pathlib import Path

from ask import PASSWORD, read

# One type for all problems: a type for each problem of each operation would be a thousand.
MAX_MODELS = 120


def main(run_file, folder):
    sys.path.insert(0, folder)
    from shoppee_client import AuthenticatedClient, Client
    from shoppee_client.api.auth import login, register
    from shoppee_client.api.orders import create_order, pay_order
    from shoppee_client.api.products import list_products
    from shoppee_client import models

    url = read(run_file)[1]
    anonymous = Client(base_url=url)
    name = f"python-{uuid.uuid4().hex[:20]}"
    body = models.RegisterRequest(username=name, email=f"{name}@example.com", password=PASSWORD)
    assert isinstance(register.sync(client=anonymous, body=body), models.User)
    tokens = login.sync(client=anonymous, body=models.LoginRequest(username=name, password=PASSWORD))
    client = AuthenticatedClient(base_url=url, token=tokens.access_token)

    product = list_products.sync(client=client, in_stock=True, limit=1).items[0]
    address = models.AddressInput(recipient="Ann", line1="1 High Street", city="Utrecht", postal_code="3511", country="NL")
    def place(quantity):
        lines = [models.OrderLineInput(product_id=product.id, quantity=quantity)]
        body = models.CreateOrderRequest(shipping_address=address, items=lines)
        return create_order.sync(client=client, body=body, idempotency_key=f"python-{quantity}")

    placed = place(1)
    assert (placed.status, placed.total) == (models.OrderStatus.PENDING, product.price), placed
    paid = pay_order.sync(placed.id, client=client, body=models.PayOrderRequest(payment_token="tok_ok"))
    assert paid.status == models.OrderStatus.PAID, paid
    refused = place(0)
    assert isinstance(refused, models.Problem) and refused.code == models.ProblemCode.VALIDATION_FAILED, refused

    made = len(list(Path(folder).rglob("models/*.py")))
    assert made < MAX_MODELS, f"{made} models"
    print(f"an order was placed and paid; {made} models")


if __name__ == "__main__":
    main(*sys.argv[1:])
