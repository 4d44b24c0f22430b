"""A warehouse: follows paid orders by OrderService.WatchEvents, and ships each once. It may be killed at any moment: the
cursor is saved after the shipment, and a repeated shipment with the same tracking number changes nothing.

Needs grpcio and grpcio-tools of PyPI. Its service account has the scopes events:watch and orders:ship. Settings:
AUTH_URL, ORDER_URL (host:port), CLIENT_ID, CLIENT_SECRET, CURSOR_FILE.
"""

import os
import random
import sys
import time
from pathlib import Path

import grpc

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "proto"))
auth, auth_stubs = grpc.protos_and_services("shoppee/auth/v1/auth.proto")
order, order_stubs = grpc.protos_and_services("shoppee/order/v1/order.proto")

CURSOR = Path(os.environ.get("CURSOR_FILE", "warehouse.cursor"))
MAX_RECONNECT_DELAY = 1  # second
# The stream has a message about every ten seconds: silent connections are found sooner.
OPTIONS = [("grpc.keepalive_time_ms", 10_000), ("grpc.keepalive_timeout_ms", 10_000)]


def channel(setting, default):
    """Opens a channel to the address in a setting."""
    return grpc.insecure_channel(os.environ.get(setting, default).removeprefix("http://"), options=OPTIONS)


def token():
    """Gets an access token by client credentials."""
    credentials = auth.IssueServiceTokenRequest(
        client_id=os.environ["CLIENT_ID"], client_secret=os.environ["CLIENT_SECRET"]
    )
    with channel("AUTH_URL", "127.0.0.1:50051") as connection:
        return auth_stubs.AuthServiceStub(connection).IssueServiceToken(credentials, timeout=5).access_token


def ship(orders, order_id, metadata):
    """Ships an order, unless it was cancelled, or shipped by other means."""
    shipment = order.ShipOrderRequest(id=order_id, carrier="Post", tracking_number=f"W-{order_id}")
    try:
        orders.ShipOrder(shipment, metadata=metadata, timeout=5)
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.FAILED_PRECONDITION:
            raise


def follow():
    """Ships orders until the stream ends."""
    metadata = [("authorization", f"Bearer {token()}")]
    with channel("ORDER_URL", "127.0.0.1:50053") as connection:
        orders = order_stubs.OrderServiceStub(connection)
        cursor = CURSOR.read_text() if CURSOR.exists() else ""
        request = order.WatchEventsRequest(cursor=cursor, statuses=[order.ORDER_STATUS_PAID])
        for message in orders.WatchEvents(request, metadata=metadata):
            if message.HasField("event"):
                ship(orders, message.event.order_id, metadata)
            # Renamed, so that a file is whole at any moment.
            new = CURSOR.with_suffix(".new")
            new.write_text(message.cursor)
            new.rename(CURSOR)


while True:
    try:
        # The stream ends with the token, and with the process that serves it.
        follow()
    except grpc.RpcError as error:
        print(error.code(), error.details(), file=sys.stderr)
    time.sleep(random.uniform(0, MAX_RECONNECT_DELAY))
