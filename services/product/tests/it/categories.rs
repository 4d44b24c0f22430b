//! Tests of the category tree.

use shoppee_kit::cursor;
use shoppee_proto::product::v1::{
    Category, CreateCategoryRequest, CreateProductRequest, DeleteCategoryRequest, ListCategoriesRequest,
    UpdateCategoryRequest, UpdateProductRequest,
};
use tonic::Status;

use crate::test_shop::{TestShop, fields, reason};

impl TestShop {
    pub async fn category(&self, slug: &str, parent_id: Option<i64>) -> Category {
        self.try_category(slug, slug, parent_id).await.expect("created")
    }

    async fn try_category(&self, slug: &str, name: &str, parent_id: Option<i64>) -> Result<Category, Status> {
        let request = CreateCategoryRequest {
            slug: slug.to_owned(),
            name: name.to_owned(),
            parent_id,
            idempotency_key: None,
        };
        let created = self.products.clone().create_category(self.admin(request)).await;
        created.map(tonic::Response::into_inner)
    }

    pub async fn change_category(
        &self,
        paths: &[&str],
        change: UpdateCategoryRequest,
    ) -> Result<Category, Status> {
        let update_mask =
            prost_types::FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() };
        let request = UpdateCategoryRequest { update_mask: Some(update_mask), ..change };
        let updated = self.products.clone().update_category(self.admin(request)).await;
        updated.map(tonic::Response::into_inner)
    }

    async fn delete_category(&self, id: i64) -> Result<(), Status> {
        let request = self.admin(DeleteCategoryRequest { id });
        self.products.clone().delete_category(request).await.map(drop)
    }
}

fn update_of(id: i64) -> UpdateCategoryRequest {
    UpdateCategoryRequest { id, ..UpdateCategoryRequest::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn category_changes_that_break_the_tree_are_refused() {
    let shop = TestShop::start().await;
    let shoes = shop.category("shoes", None).await;
    let boots = shop.category("boots", Some(shoes.id)).await;
    let all =
        shop.products.clone().list_categories(ListCategoriesRequest::default()).await.unwrap().into_inner();
    assert_eq!(all.items, [boots.clone(), shoes.clone()]);

    assert_eq!(reason(shop.try_category("boots", "x", None).await), "SLUG_TAKEN");
    assert_eq!(fields(shop.try_category("x", "x", Some(99)).await), ["parent_id"]);
    assert_eq!(fields(shop.try_category("X", "", None).await), ["slug", "name"]);

    let below = |id, parent_id| UpdateCategoryRequest { parent_id, ..update_of(id) };
    for parent in [shoes.id, boots.id, 99] {
        let cycle = shop.change_category(&["parent_id"], below(shoes.id, Some(parent))).await;
        assert_eq!(reason(cycle), "VALIDATION_FAILED");
    }
    let taken = UpdateCategoryRequest { slug: Some("shoes".to_owned()), ..update_of(boots.id) };
    assert_eq!(reason(shop.change_category(&["slug"], taken).await), "SLUG_TAKEN");
    assert_eq!(fields(shop.change_category(&["name"], update_of(boots.id)).await), ["name"]);
    assert_eq!(reason(shop.change_category(&["id"], update_of(boots.id)).await), "INVALID_REQUEST");
    assert_eq!(reason(shop.change_category(&[], update_of(99)).await), "NOT_FOUND");
    let root = shop.change_category(&["parent_id"], below(boots.id, None)).await.unwrap();
    assert_eq!(root.parent_id, None);
    assert_eq!((root.slug.as_str(), root.name.as_str()), ("boots", "boots"));
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_moves_create_no_cycle() {
    let shop = TestShop::start().await;
    let (a, b) = (shop.category("a", None).await, shop.category("b", None).await);
    for _ in 0..10 {
        let below = |id, parent| UpdateCategoryRequest { parent_id: Some(parent), ..update_of(id) };
        let (first, second) = tokio::join!(
            shop.change_category(&["parent_id"], below(a.id, b.id)),
            shop.change_category(&["parent_id"], below(b.id, a.id)),
        );
        assert!(first.is_ok() != second.is_ok());
        for id in [a.id, b.id] {
            shop.change_category(&["parent_id"], update_of(id)).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_category_in_use_is_not_deleted() {
    let shop = TestShop::start().await;
    let shoes = shop.category("shoes", None).await;
    let boots = shop.category("boots", Some(shoes.id)).await;
    let boot = shop
        .create(CreateProductRequest {
            sku: "boot".to_owned(),
            name: "Boot".to_owned(),
            category_id: Some(boots.id),
            ..CreateProductRequest::default()
        })
        .await;
    assert_eq!(boot.category.as_ref().map(|category| category.slug.as_str()), Some("boots"));
    for used in [shoes.id, boots.id] {
        assert_eq!(reason(shop.delete_category(used).await), "CATEGORY_IN_USE");
    }
    shop.archive(boot.id).await.unwrap();
    assert_eq!(reason(shop.delete_category(boots.id).await), "CATEGORY_IN_USE");

    let uncategorized = UpdateProductRequest {
        id: boot.id,
        update_mask: Some(prost_types::FieldMask { paths: vec!["category_id".to_owned()] }),
        ..UpdateProductRequest::default()
    };
    let out = shop.products.clone().update_product(shop.admin(uncategorized)).await.unwrap().into_inner();
    assert_eq!((out.category, out.version), (None, 3));
    for unused in [boots.id, shoes.id] {
        shop.delete_category(unused).await.unwrap();
        assert_eq!(reason(shop.delete_category(unused).await), "NOT_FOUND");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn categories_are_listed_page_by_page() {
    let shop = TestShop::start().await;
    let mut slugs = Vec::new();
    for number in 0..25 {
        let slug = format!("category-{number:02}");
        shop.category(&slug, None).await;
        slugs.push(slug);
    }
    let list = async |limit, cursor| {
        shop.products.clone().list_categories(ListCategoriesRequest { limit, cursor }).await
    };
    let (mut listed, mut cursor) = (Vec::new(), None);
    for expected in [10, 10, 5] {
        let page = list(Some(10), cursor).await.unwrap().into_inner();
        assert_eq!(page.items.len(), expected);
        listed.extend(page.items.into_iter().map(|category| category.slug));
        cursor = page.next_cursor;
    }
    assert_eq!((listed, cursor), (slugs, None));
    assert_eq!(list(None, None).await.unwrap().into_inner().items.len(), 20);
    for limit in [0, -1, 101] {
        assert_eq!(fields(list(Some(limit), None).await), ["limit"]);
    }
    let categories = cursor::List::new(&"categories");
    let of_another_list = cursor::List::new(&"service accounts").encode(&"a");
    for cursor in ["nonsense", &categories.encode(&"\0"), &categories.encode(&7), &of_another_list] {
        assert_eq!(fields(list(None, Some(cursor.to_owned())).await), ["cursor"]);
    }
}
