//! Tests of single products: writes by an admin and refused requests.

use shoppee_proto::{
    Object,
    product::v1::{
        AdjustStockRequest, ArchiveProductRequest, BatchGetProductsRequest, CreateProductRequest,
        GetProductRequest, Product, ProductStatus, ProductView, UpdateProductRequest,
    },
};
use tonic::Status;

use crate::test_shop::{TestShop, fields, order, reason};

impl TestShop {
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

    /// Reads a product as an anonymous caller.
    async fn get_as_guest(&self, id: i64) -> Result<Product, Status> {
        let request = GetProductRequest { id };
        self.products.clone().get_product(request).await.map(tonic::Response::into_inner)
    }
}

fn update_of(id: i64) -> UpdateProductRequest {
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

/// Parses attributes from JSON.
fn attributes(json: &str) -> Object {
    serde_json::from_str(json).expect("an object")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_created_product_is_read_back_unchanged() {
    let shop = TestShop::start().await;
    let sent =
        r#"{"colour":"red","deep":[{"grams":120},null,true,1.5],"exact":0.42451918914251396,"huge":1e17}"#;
    let request = CreateProductRequest {
        description: Some("Gives light.\nTwo lines.".to_owned()),
        image_url: Some("https://cdn.example/lamp.png".to_owned()),
        attributes: Some(attributes(sent)),
        ..lamp()
    };
    let created = shop.create(request).await;
    assert_eq!(created, shop.get_as_guest(created.id).await.unwrap());
    assert_eq!((created.price, created.stock, created.version), (1999, 3, 1));
    assert_eq!((created.currency.as_str(), created.status()), ("EUR", ProductStatus::Active));
    assert_eq!(created.attributes, Some(attributes(sent)));
    assert_eq!(created.created_at, created.updated_at);
    assert_eq!(created.category, None);
    for unknown in [created.id + 1, 0, -1, i64::MIN, i64::MAX] {
        assert_eq!(reason(shop.get_as_guest(unknown).await), "NOT_FOUND");
    }
    shop.assert_stock_invariant().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_new_product_is_refused() {
    let shop = TestShop::start().await;
    let create =
        async |request: CreateProductRequest| shop.products.clone().create_product(shop.admin(request)).await;
    let invalid = CreateProductRequest {
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
    let refused = create(invalid.clone()).await;
    assert_eq!(
        fields(refused),
        ["sku", "name", "description", "price", "stock", "image_url", "attributes"].map(ToOwned::to_owned)
    );
    assert_eq!(reason(create(invalid).await), "VALIDATION_FAILED");
    let unknown_category = CreateProductRequest { category_id: Some(99), ..lamp() };
    assert_eq!(fields(create(unknown_category).await), ["category_id"]);

    create(lamp()).await.unwrap();
    assert_eq!(reason(create(lamp()).await), "SKU_TAKEN");
    // SKUs are case-sensitive: this is another product.
    create(CreateProductRequest { sku: "LAMP-1".to_owned(), ..lamp() }).await.unwrap();
    let largest = CreateProductRequest {
        sku: "max".to_owned(),
        price: 1_000_000_000_000,
        stock: 1_000_000_000,
        ..lamp()
    };
    create(largest).await.unwrap();
    assert_eq!(shop.count("select count(*) from product.product").await, 3);
    shop.assert_stock_invariant().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_changes_only_the_fields_of_its_mask() {
    let shop = TestShop::start().await;
    let before = shop.create(CreateProductRequest { description: Some("old".to_owned()), ..lamp() }).await;
    let id = before.id;

    let change = UpdateProductRequest {
        name: Some("Lantern".to_owned()),
        price: Some(5),
        stock: Some(10),
        ..update_of(id)
    };
    assert_eq!(shop.update(&[], change.clone()).await.unwrap(), before);
    let after = shop.update(&["name", "stock"], change.clone()).await.unwrap();
    assert_eq!((after.name.as_str(), after.price, after.stock, after.version), ("Lantern", 1999, 10, 2));
    assert!(after.updated_at > before.updated_at && after.created_at == before.created_at);
    // The same values again change nothing.
    assert_eq!(shop.update(&["name", "stock"], change).await.unwrap(), after);

    let cleared = shop.update(&["description", "image_url", "attributes"], update_of(id)).await.unwrap();
    assert_eq!((cleared.description.as_str(), cleared.image_url, cleared.version), ("", None, 3));
    for mandatory in ["sku", "name", "price", "stock", "status"] {
        assert_eq!(fields(shop.update(&[mandatory], update_of(id)).await), [mandatory]);
        assert_eq!(reason(shop.update(&[mandatory], update_of(id)).await), "VALIDATION_FAILED");
    }
    for unknown in ["id", "version", "created_at", "colour", ""] {
        assert_eq!(reason(shop.update(&[unknown], update_of(id)).await), "INVALID_REQUEST");
    }
    let taken = shop.product("taken", 0).await;
    let same = UpdateProductRequest { sku: Some(taken.sku), ..update_of(id) };
    assert_eq!(reason(shop.update(&["sku"], same).await), "SKU_TAKEN");
    assert_eq!(reason(shop.update(&["name"], update_of(id + 99)).await), "VALIDATION_FAILED");
    assert_eq!(reason(shop.update(&[], update_of(id + 99)).await), "NOT_FOUND");
    shop.assert_stock_invariant().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outdated_version_is_refused_and_holds_do_not_change_it() {
    let shop = TestShop::start().await;
    let id = shop.create(lamp()).await.id;
    shop.hold(order(), [(id, 1)]).await.unwrap();
    let change = |price, version| UpdateProductRequest {
        price: Some(price),
        expected_version: Some(version),
        ..update_of(id)
    };
    let after = shop.update(&["price"], change(7, 1)).await.unwrap();
    assert_eq!((after.version, after.stock, after.price), (2, 2, 7));
    assert_eq!(reason(shop.update(&["price"], change(8, 1)).await), "VERSION_MISMATCH");
    assert_eq!(reason(shop.update(&[], change(8, 1)).await), "VERSION_MISMATCH");
    let archive = ArchiveProductRequest { id, expected_version: Some(1) };
    let refused = shop.products.clone().archive_product(shop.admin(archive)).await;
    assert_eq!(reason(refused), "VERSION_MISMATCH");
    assert_eq!(shop.get(id).await, after);
    shop.assert_stock_invariant().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archived_product_is_hidden_from_customers() {
    let shop = TestShop::start().await;
    let id = shop.create(lamp()).await.id;
    shop.archive(id).await.unwrap();
    let archived = shop.get(id).await;
    assert_eq!((archived.status(), archived.version), (ProductStatus::Archived, 2));
    shop.archive(id).await.unwrap();
    assert_eq!(shop.get(id).await.version, 2);
    assert_eq!(reason(shop.archive(id + 1).await), "NOT_FOUND");

    assert_eq!(reason(shop.get_as_guest(id).await), "NOT_FOUND");
    let customer = shop.customer(GetProductRequest { id });
    assert_eq!(reason(shop.products.clone().get_product(customer).await), "NOT_FOUND");
    let service = shop.service(GetProductRequest { id });
    assert!(shop.products.clone().get_product(service).await.is_ok());

    let back = UpdateProductRequest { status: Some(ProductStatus::Active.into()), ..update_of(id) };
    shop.update(&["status"], back).await.unwrap();
    assert!(shop.get_as_guest(id).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_read_keeps_the_requested_order() {
    let shop = TestShop::start().await;
    let (a, b, gone) =
        (shop.product("a", 1).await.id, shop.product("b", 0).await.id, shop.product("c", 1).await.id);
    shop.archive(gone).await.unwrap();
    let ids = vec![b, 999, gone, a, b, -1];
    let read = async |request| {
        let response = shop.products.clone().batch_get_products(request).await.unwrap().into_inner();
        response.items.into_iter().map(|product: Product| product.id).collect::<Vec<_>>()
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
async fn a_stock_correction_out_of_bounds_is_refused() {
    let shop = TestShop::start().await;
    let id = shop.create(lamp()).await.id;
    let after = shop.adjust(id, -3).await.unwrap();
    assert_eq!((after.stock, after.version), (0, 2));
    assert_eq!(reason(shop.adjust(id, -1).await), "OUT_OF_STOCK");
    assert_eq!(shop.adjust(id, 1_000_000_000).await.unwrap().stock, 1_000_000_000);
    assert_eq!(reason(shop.adjust(id, 1).await), "VALIDATION_FAILED");
    for invalid in [0, i64::MIN, 1_000_000_001] {
        assert_eq!(reason(shop.adjust(id, invalid).await), "VALIDATION_FAILED");
    }
    assert_eq!(reason(shop.adjust(id + 1, 1).await), "NOT_FOUND");
    for invalid_reason in ["", " ", "\0", &"x".repeat(501)] {
        let request =
            AdjustStockRequest { id, delta: -1, reason: invalid_reason.to_owned(), idempotency_key: None };
        assert_eq!(fields(shop.products.clone().adjust_stock(shop.admin(request)).await), ["reason"]);
    }
    // Archived products can be corrected too: their units are counted.
    shop.archive(id).await.unwrap();
    assert_eq!(shop.adjust(id, -999_999_999).await.unwrap().stock, 1);
    shop.assert_stock_invariant().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_basic_view_omits_large_fields() {
    let shop = TestShop::start().await;
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
