use shoppee_proto::{
    Object,
    order::v1::{ClearCartRequest, CreateOrderRequest, SetCartItemRequest},
    product::v1::{ArchiveProductRequest, CreateProductRequest, UpdateProductRequest},
};

use crate::shop::{TestShop, expect_error, order_request};

#[tokio::test]
async fn a_cart_shows_current_prices_and_availability() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let (tea, cup) = (admin.sells("tea", 450, 10).await, admin.sells("cup", 1200, 1).await);
    assert_eq!(ann.cart().await.items.len(), 0, "a new user's cart is empty");

    ann.add_to_cart(tea, 2).await.unwrap();
    let cart = ann.add_to_cart(cup, 2).await.unwrap();
    assert_eq!(cart.total, 2 * 450 + 2 * 1200);
    let shown: Vec<_> =
        cart.items.iter().map(|item| (item.product_id, item.line_total, item.available)).collect();
    assert_eq!(shown, [(tea, 900, true), (cup, 2400, false)]);

    let (mut products, token) = admin.products();
    let change = UpdateProductRequest {
        id: tea,
        update_mask: Some(prost_types::FieldMask { paths: vec!["price".to_owned()] }),
        price: Some(500),
        ..UpdateProductRequest::default()
    };
    products.update_product(admin.request(change)).await.unwrap();
    assert_eq!(ann.cart().await.items[0].unit_price, 500, "prices are live");

    let mut archive = tonic::Request::new(ArchiveProductRequest { id: cup, expected_version: None });
    shoppee_kit::caller::authorize(&mut archive, &token);
    products.archive_product(archive).await.unwrap();
    let cart = ann.cart().await;
    assert!(!cart.items[1].available, "an archived product stays visible and cannot be bought");
    assert_eq!(expect_error(ann.add_to_cart(cup, 1).await), "product_unavailable");
    assert_eq!(expect_error(ann.add_to_cart(999_999, 1).await), "product_unavailable");
}

#[tokio::test]
async fn a_cart_line_is_set_and_removed_within_its_bounds() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 10).await;
    let set = async |quantity| {
        let request = ann.request(SetCartItemRequest { product_id: tea, quantity });
        ann.service().set_cart_item(request).await.map(tonic::Response::into_inner)
    };

    assert_eq!(set(7).await.unwrap().items[0].quantity, 7);
    assert_eq!(ann.add_to_cart(tea, 3).await.unwrap().items[0].quantity, 10);
    assert_eq!(expect_error(ann.add_to_cart(tea, 991).await), "validation_failed");
    assert_eq!(ann.cart().await.items[0].quantity, 10, "a rejected change has no effect");
    for invalid in [-1, 1001] {
        assert_eq!(expect_error(set(invalid).await), "validation_failed");
    }
    for invalid in [0, -1, 1001] {
        assert_eq!(expect_error(ann.add_to_cart(tea, invalid).await), "validation_failed");
    }
    assert_eq!(set(0).await.unwrap().items.len(), 0);

    ann.add_to_cart(tea, 1).await.unwrap();
    ann.service().clear_cart(ann.request(ClearCartRequest {})).await.unwrap();
    assert_eq!(ann.cart().await.items.len(), 0);
}

#[tokio::test]
async fn a_full_cart_of_maximum_size_products_is_returned() {
    const LINES: usize = 100;
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let text = prost_types::value::Kind::StringValue("x".repeat(16_000));
    let attributes = [("text".to_owned(), prost_types::Value { kind: Some(text) })];
    let mut ids = Vec::new();
    for number in 0..LINES {
        let product = CreateProductRequest {
            sku: format!("large-{number}"),
            name: format!("Product {number}"),
            stock: 1,
            // Four bytes per character.
            description: Some("𝄞".repeat(10_000)),
            attributes: Some(Object { fields: attributes.clone().into() }),
            ..CreateProductRequest::default()
        };
        let created = admin.products().0.create_product(admin.request(product)).await.expect("created");
        ids.push(created.into_inner().id);
    }
    // The other lines are inserted directly, as each call reads the cart.
    ann.add_to_cart(ids[0], 1).await.expect("added");
    let lines = "insert into orders.cart_line (user_id, product_id, quantity, added_at)
                 select $1, id, 1, now() from unnest($2::bigint[]) id";
    let rest = sqlx::query(lines).bind(ann.id).bind(&ids[1..]);
    rest.execute(&shop.db().await).await.expect("inserted");
    let cart = ann.cart().await;
    assert_eq!(cart.items.iter().filter(|item| item.available).count(), LINES);
}

#[tokio::test]
async fn concurrent_adds_to_one_cart_line_are_all_counted() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 10).await;
    let device = || {
        let ann = ann.clone();
        tokio::spawn(async move {
            for _ in 0..100 {
                ann.add_to_cart(tea, 1).await.unwrap();
            }
        })
    };
    let (one, other) = (device(), device());
    one.await.unwrap();
    other.await.unwrap();
    assert_eq!(ann.cart().await.items[0].quantity, 200);
}

#[tokio::test]
async fn a_request_without_items_orders_the_cart_only_with_from_cart() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 10).await;
    ann.add_to_cart(tea, 2).await.unwrap();
    for (items, from_cart) in [(&[][..], false), (&[(tea, 1)], true)] {
        let request = CreateOrderRequest { from_cart, ..order_request(items) };
        assert_eq!(expect_error(ann.orders(request).await), "validation_failed");
    }
    assert_eq!((ann.cart().await.items.len(), admin.stock(tea).await), (1, 10), "nothing is ordered");
}

#[tokio::test]
async fn ordering_the_cart_removes_only_the_ordered_quantities() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 10).await;
    assert_eq!(expect_error(ann.orders(order_request(&[])).await), "cart_empty");

    ann.add_to_cart(tea, 2).await.unwrap();
    let order = ann.orders(order_request(&[])).await.unwrap().into_inner();
    assert_eq!((order.total, order.items[0].quantity), (900, 2));
    assert_eq!(ann.cart().await.items.len(), 0);

    ann.add_to_cart(tea, 1).await.unwrap();
    ann.buys(tea, 3).await;
    assert_eq!(ann.cart().await.items[0].quantity, 1, "an order by items leaves the cart alone");
    assert_eq!(admin.stock(tea).await, 5);
}

#[tokio::test]
async fn concurrent_orders_of_one_cart_place_one_order() {
    let shop = TestShop::start().await;
    let (admin, ann) = (shop.admin().await, shop.customer("ann").await);
    let tea = admin.sells("tea", 450, 100).await;
    for _ in 0..10 {
        ann.add_to_cart(tea, 2).await.unwrap();
        let clicks: Vec<_> = (0..4)
            .map(|_| {
                let ann = ann.clone();
                tokio::spawn(async move { ann.orders(order_request(&[])).await })
            })
            .collect();
        let mut placed = Vec::new();
        for click in clicks {
            match click.await.unwrap() {
                Ok(order) => placed.push(order.into_inner().id),
                other => assert_eq!(expect_error(other), "cart_empty"),
            }
        }
        assert_eq!(placed.len(), 1);
        ann.cancels(&placed[0]).await.unwrap();
    }
    shoppee_kit::testing::eventually("all stock is released", || async { admin.stock(tea).await == 100 })
        .await;
}

#[tokio::test]
async fn the_second_checkout_of_a_cart_holds_no_units_that_others_could_buy() {
    let shop = TestShop::start().await;
    let (admin, ann, ben) = (shop.admin().await, shop.customer("ann").await, shop.customer("ben").await);
    for round in 0..5 {
        let tea = admin.sells(&format!("tea-{round}"), 450, 6).await;
        ann.add_to_cart(tea, 3).await.unwrap();
        let clicks = [0, 1].map(|_| {
            let ann = ann.clone();
            tokio::spawn(async move { ann.orders(order_request(&[])).await })
        });
        ben.orders(order_request(&[(tea, 3)])).await.expect("three units are left for others");
        let mut errors = Vec::new();
        for click in clicks {
            errors.extend(click.await.unwrap().err().map(|error| expect_error::<()>(Err(error))));
        }
        assert_eq!(errors, ["cart_empty"], "round {round}");
        assert_eq!(admin.stock(tea).await, 0);
    }
}
