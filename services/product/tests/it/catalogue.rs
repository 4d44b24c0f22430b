//! Products, one by one: what an admin may do to them, and what is refused.

use shoppee_proto::{
    Object,
    product::v1::{
        AdjustStockRequest, ArchiveProductRequest, BatchGetProductsRequest, CreateProductRequest,
        GetProductRequest, Product, ProductStatus, ProductView, UpdateProductRequest,
    },
};
use tonic::Status;

use crate::shop::{Shop, fields, order, reason};

impl Shop {
    async fn update(&self, paths: &[&str], change: UpdateProductRequest) -> Result<Product, Status> {
        let update_mask =
            prost_types::FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() };
        let request = UpdateProductRequest { update_mask: Some(update_mask), ..change };
        let updated = self.products.clone().update_product(self.admin(request)).await;
        updated.map(tonic::Response::into_inner)
    }

    pub async fn archive(&self, id: i64) -> Result<(), Status> {
        let request = ArchiveProductRequest { id, expected_version: None };
        self.products.clone().archive_product(self.admin(request)).await.map(drop)
    }

    /// As somebody who has not signed in sees it.
    async fn look(&self, id: i64) -> Result<Product, Status> {
        let request = GetProductRequest { id };
        self.products.clone().get_product(request).await.map(tonic::Response::into_inner)
    }
}

fn of(id: i64) -> UpdateProductRequest {
    UpdateProductRequest { id, ..UpdateProductRequest::default() }
}

fn lamp() -> CreateProductRequest {
    CreateProductRequest {
        sku: "Lamp-1".to_owned(),
        name: "Lamp".to_owned(),
        price: 1999,
        stock: 3,
        ..CreateProductRequest::default()
    }
}

/// Attributes as they come from JSON.
fn attributes(json: &str) -> Object {
    serde_json::from_str(json).expect("an object")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_product_is_read_as_it_was_written() {
    let shop = Shop::open().await;
    let sent =
        r#"{"colour":"red","deep":[{"grams":120},null,true,1.5],"exact":0.42451918914251396,"huge":1e17}"#;
    let request = CreateProductRequest {
        description: Some("Gives light.\nTwo lines.".to_owned()),
        image_url: Some("https://cdn.example/lamp.png".to_owned()),
        attributes: Some(attributes(sent)),
        ..lamp()
    };
    let created = shop.create(request).await;
    assert_eq!(created, shop.look(created.id).await.unwrap());
    assert_eq!((created.price, created.stock, created.version), (1999, 3, 1));
    assert_eq!((created.currency.as_str(), created.status()), ("EUR", ProductStatus::Active));
    assert_eq!(created.attributes, Some(attributes(sent)));
    assert_eq!(created.created_at, created.updated_at);
    assert_eq!(created.category, None);
    for unknown in [created.id + 1, 0, -1, i64::MIN, i64::MAX] {
        assert_eq!(reason(shop.look(unknown).await), "NOT_FOUND");
    }
    shop.balances().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_product_keeps_the_rules() {
    let shop = Shop::open().await;
    let create =
        async |request: CreateProductRequest| shop.products.clone().create_product(shop.admin(request)).await;
    let odd = CreateProductRequest {
        sku: "no spaces".to_owned(),
        name: " ".to_owned(),
        price: -1,
        stock: 1_000_000_001,
        description: Some("\0".to_owned()),
        image_url: Some("javascript:alert(1)".to_owned()),
        attributes: Some(attributes(r#"{"a":"\u0000"}"#)),
        category_id: None,
        idempotency_key: None,
    };
    let refused = create(odd.clone()).await;
    assert_eq!(
        fields(refused),
        ["sku", "name", "description", "price", "stock", "image_url", "attributes"].map(ToOwned::to_owned)
    );
    assert_eq!(reason(create(odd).await), "VALIDATION_FAILED");
    let nowhere = CreateProductRequest { category_id: Some(99), ..lamp() };
    assert_eq!(fields(create(nowhere).await), ["category_id"]);

    create(lamp()).await.unwrap();
    assert_eq!(reason(create(lamp()).await), "SKU_TAKEN");
    // As it is written: this is another.
    create(CreateProductRequest { sku: "LAMP-1".to_owned(), ..lamp() }).await.unwrap();
    let largest = CreateProductRequest {
        sku: "max".to_owned(),
        price: 1_000_000_000_000,
        stock: 1_000_000_000,
        ..lamp()
    };
    create(largest).await.unwrap();
    assert_eq!(shop.count("select count(*) from product.product").await, 3);
    shop.balances().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_the_mask_names_changes() {
    let shop = Shop::open().await;
    let before = shop.create(CreateProductRequest { description: Some("old".to_owned()), ..lamp() }).await;
    let id = before.id;

    let change =
        UpdateProductRequest { name: Some("Lantern".to_owned()), price: Some(5), stock: Some(10), ..of(id) };
    assert_eq!(shop.update(&[], change.clone()).await.unwrap(), before);
    let after = shop.update(&["name", "stock"], change.clone()).await.unwrap();
    assert_eq!((after.name.as_str(), after.price, after.stock, after.version), ("Lantern", 1999, 10, 2));
    assert!(after.updated_at > before.updated_at && after.created_at == before.created_at);
    // The same again is no change.
    assert_eq!(shop.update(&["name", "stock"], change).await.unwrap(), after);

    let cleared = shop.update(&["description", "image_url", "attributes"], of(id)).await.unwrap();
    assert_eq!((cleared.description.as_str(), cleared.image_url, cleared.version), ("", None, 3));
    for kept in ["sku", "name", "price", "stock", "status"] {
        assert_eq!(fields(shop.update(&[kept], of(id)).await), [kept]);
        assert_eq!(reason(shop.update(&[kept], of(id)).await), "VALIDATION_FAILED");
    }
    for unknown in ["id", "version", "created_at", "colour", ""] {
        assert_eq!(reason(shop.update(&[unknown], of(id)).await), "INVALID_REQUEST");
    }
    let taken = shop.product("taken", 0).await;
    let same = UpdateProductRequest { sku: Some(taken.sku), ..of(id) };
    assert_eq!(reason(shop.update(&["sku"], same).await), "SKU_TAKEN");
    assert_eq!(reason(shop.update(&["name"], of(id + 99)).await), "VALIDATION_FAILED");
    assert_eq!(reason(shop.update(&[], of(id + 99)).await), "NOT_FOUND");
    shop.balances().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_version_is_refused_and_orders_do_not_make_one_old() {
    let shop = Shop::open().await;
    let id = shop.create(lamp()).await.id;
    shop.hold(order(), [(id, 1)]).await.unwrap();
    let change = |price, version| UpdateProductRequest {
        price: Some(price),
        expected_version: Some(version),
        ..of(id)
    };
    let after = shop.update(&["price"], change(7, 1)).await.unwrap();
    assert_eq!((after.version, after.stock, after.price), (2, 2, 7));
    assert_eq!(reason(shop.update(&["price"], change(8, 1)).await), "VERSION_MISMATCH");
    assert_eq!(reason(shop.update(&[], change(8, 1)).await), "VERSION_MISMATCH");
    let archive = ArchiveProductRequest { id, expected_version: Some(1) };
    let refused = shop.products.clone().archive_product(shop.admin(archive)).await;
    assert_eq!(reason(refused), "VERSION_MISMATCH");
    assert_eq!(shop.get(id).await, after);
    shop.balances().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archived_product_is_gone_from_the_shop() {
    let shop = Shop::open().await;
    let id = shop.create(lamp()).await.id;
    shop.archive(id).await.unwrap();
    let archived = shop.get(id).await;
    assert_eq!((archived.status(), archived.version), (ProductStatus::Archived, 2));
    shop.archive(id).await.unwrap();
    assert_eq!(shop.get(id).await.version, 2);
    assert_eq!(reason(shop.archive(id + 1).await), "NOT_FOUND");

    assert_eq!(reason(shop.look(id).await), "NOT_FOUND");
    let customer = shop.customer(GetProductRequest { id });
    assert_eq!(reason(shop.products.clone().get_product(customer).await), "NOT_FOUND");
    let service = shop.service(GetProductRequest { id });
    assert!(shop.products.clone().get_product(service).await.is_ok());

    let back = UpdateProductRequest { status: Some(ProductStatus::Active.into()), ..of(id) };
    shop.update(&["status"], back).await.unwrap();
    assert!(shop.look(id).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_are_read_in_the_order_asked_for() {
    let shop = Shop::open().await;
    let (a, b, gone) =
        (shop.product("a", 1).await.id, shop.product("b", 0).await.id, shop.product("c", 1).await.id);
    shop.archive(gone).await.unwrap();
    let ids = vec![b, 999, gone, a, b, -1];
    let read = async |request| {
        let found = shop.products.clone().batch_get_products(request).await.unwrap().into_inner();
        found.items.into_iter().map(|product: Product| product.id).collect::<Vec<_>>()
    };
    assert_eq!(
        read(tonic::Request::new(BatchGetProductsRequest {
            ids: ids.clone(),
            ..BatchGetProductsRequest::default()
        }))
        .await,
        [b, a]
    );
    assert_eq!(
        read(shop.service(BatchGetProductsRequest { ids, ..BatchGetProductsRequest::default() })).await,
        [b, gone, a]
    );
    let many = BatchGetProductsRequest { ids: (0..1001).collect(), ..BatchGetProductsRequest::default() };
    assert_eq!(reason(shop.products.clone().batch_get_products(many).await), "VALIDATION_FAILED");
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_is_corrected_within_bounds() {
    let shop = Shop::open().await;
    let id = shop.create(lamp()).await.id;
    let after = shop.adjust(id, -3).await.unwrap();
    assert_eq!((after.stock, after.version), (0, 2));
    assert_eq!(reason(shop.adjust(id, -1).await), "OUT_OF_STOCK");
    assert_eq!(shop.adjust(id, 1_000_000_000).await.unwrap().stock, 1_000_000_000);
    assert_eq!(reason(shop.adjust(id, 1).await), "VALIDATION_FAILED");
    for odd in [0, i64::MIN, 1_000_000_001] {
        assert_eq!(reason(shop.adjust(id, odd).await), "VALIDATION_FAILED");
    }
    assert_eq!(reason(shop.adjust(id + 1, 1).await), "NOT_FOUND");
    for reason_given in ["", " ", "\0", &"x".repeat(501)] {
        let request =
            AdjustStockRequest { id, delta: -1, reason: reason_given.to_owned(), idempotency_key: None };
        assert_eq!(fields(shop.products.clone().adjust_stock(shop.admin(request)).await), ["reason"]);
    }
    // Also of a product that is no longer sold: it has to be counted.
    shop.archive(id).await.unwrap();
    assert_eq!(shop.adjust(id, -999_999_999).await.unwrap().stock, 1);
    shop.balances().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_basic_view_of_a_product_has_nothing_that_can_be_large() {
    let shop = Shop::open().await;
    let created = shop
        .create(CreateProductRequest {
            description: Some("Gives light.".to_owned()),
            image_url: Some("https://cdn.example/lamp.png".to_owned()),
            attributes: Some(attributes(r#"{"colour":"red"}"#)),
            ..lamp()
        })
        .await;
    let basic = Product { description: String::new(), image_url: None, attributes: None, ..created.clone() };
    for (view, expected) in
        [(ProductView::Unspecified, &created), (ProductView::Full, &created), (ProductView::Basic, &basic)]
    {
        let request = BatchGetProductsRequest { ids: vec![created.id], view: view.into() };
        let answer = shop.products.clone().batch_get_products(request).await.unwrap().into_inner();
        assert_eq!(answer.items, std::slice::from_ref(expected), "{view:?}");
    }
    let request = BatchGetProductsRequest { ids: vec![created.id], view: 99 };
    assert_eq!(fields(shop.products.clone().batch_get_products(request).await), ["view"]);
}
