// What the types of the package say; compiled, never run.

import { Shoppee, type Order, type Product } from "../src/index.js";

const shop = new Shoppee({ url: "https://shop.example" });
const address = { recipient: "A", line1: "B", city: "C", postal_code: "1", country: "NL" };

export async function right(): Promise<void> {
  const { items, next_cursor } = await shop.get("/api/v1/products", { params: { query: { limit: 5, sort: "name" } } });
  const first: Product | undefined = items[0];
  const cursor: string | null = next_cursor;
  const order: Order = await shop.post("/api/v1/orders", { body: { shipping_address: address } });
  const paid: Order = await shop.post("/api/v1/orders/{id}/pay", {
    params: { path: { id: order.id }, header: { "Idempotency-Key": "pay-1" } },
    body: { payment_token: "tok_ok" },
  });
  await shop.delete("/api/v1/cart");
  void [first, cursor, paid];
}

export async function wrong(): Promise<void> {
  // @ts-expect-error: there is no such route
  await shop.get("/api/v1/nothing");
  // @ts-expect-error: an order needs an address
  await shop.post("/api/v1/orders", { body: { items: [] } });
  // @ts-expect-error: the id lacks
  await shop.get("/api/v1/orders/{id}");
  // @ts-expect-error: there is no such order of products
  await shop.get("/api/v1/products", { params: { query: { sort: "size" } } });
}
