//! The administration of users.

use std::collections::BTreeSet;

use shoppee_proto::auth::v1::{GetUserRequest, ListUsersRequest, Role, UpdateUserRequest};
use tonic::Code::{InvalidArgument, NotFound, PermissionDenied};

use crate::shop::{TestAuth, expect_error, fields};

#[tokio::test]
async fn users_are_searched_by_part_and_role() {
    let shop = TestAuth::start().await;
    let root = shop.admin("root").await;
    for name in ["ann_1", "annx1", "Bob.50", "carl"] {
        shop.registers(name).await;
    }
    let names = async |q: Option<&str>, role: Option<Role>| {
        let request =
            ListUsersRequest { q: q.map(str::to_owned), role: role.map(Into::into), ..Default::default() };
        let page = root.lists_users(request).await.unwrap();
        assert_eq!(page.next_cursor, None);
        assert!(page.items.iter().all(|user| user.disabled == Some(false)), "admins see it");
        page.items.into_iter().map(|user| user.username).collect::<Vec<_>>()
    };
    assert_eq!(names(None, None).await, ["carl", "Bob.50", "annx1", "ann_1", "root"]);
    assert_eq!(names(Some("ANN"), None).await, ["annx1", "ann_1"]);
    assert_eq!(names(Some("bob.50@EXAMPLE"), None).await, ["Bob.50"]);
    assert_eq!(names(Some("ann_1"), None).await, ["ann_1"], "no wildcard");
    for nothing in ["%", "\\", "' or '1'='1", "ä"] {
        assert!(names(Some(nothing), None).await.is_empty(), "{nothing}");
    }
    assert_eq!(names(None, Some(Role::Admin)).await, ["root"]);
    assert_eq!(names(Some("o"), Some(Role::User)).await.len(), 4);
}

#[tokio::test]
async fn pages_neither_skip_nor_repeat_users_during_registrations() {
    let shop = TestAuth::start().await;
    let root = shop.admin("root").await;
    let mut expected = BTreeSet::from([root.id()]);
    for number in 0..6 {
        expected.insert(shop.registers(&format!("user{number}")).await.id);
    }
    let (mut listed, mut cursor) = (Vec::new(), None);
    loop {
        let page = root
            .lists_users(ListUsersRequest { limit: Some(3), cursor, ..Default::default() })
            .await
            .unwrap();
        assert!((1..=3).contains(&page.items.len()));
        listed.extend(page.items.into_iter().map(|user| user.id));
        shop.registers(&format!("late{}", listed.len())).await;
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(listed.len(), expected.len());
    assert_eq!(listed.into_iter().collect::<BTreeSet<_>>(), expected);
}

#[tokio::test]
async fn invalid_parameters_are_rejected() {
    let shop = TestAuth::start().await;
    let root = shop.admin("root").await;
    let limit = |limit| ListUsersRequest { limit: Some(limit), ..Default::default() };
    for (request, field) in [
        (limit(0), "limit"),
        (limit(-1), "limit"),
        (limit(101), "limit"),
        (ListUsersRequest { cursor: Some("nonsense".to_owned()), ..Default::default() }, "cursor"),
        (ListUsersRequest { q: Some("a\0".to_owned()), ..Default::default() }, "q"),
        (ListUsersRequest { q: Some("x".repeat(255)), ..Default::default() }, "q"),
        (ListUsersRequest { role: Some(Role::Service.into()), ..Default::default() }, "role"),
        (ListUsersRequest { role: Some(77), ..Default::default() }, "role"),
    ] {
        let status = expect_error(root.lists_users(request).await, InvalidArgument, "INVALID_REQUEST");
        assert_eq!(fields(&status), [field]);
    }
    assert_eq!(root.lists_users(limit(100)).await.unwrap().items.len(), 1);
}

#[tokio::test]
async fn an_admin_reads_and_changes_a_user() {
    let shop = TestAuth::start().await;
    let (root, ann) = (shop.admin("root").await, shop.registers("ann").await);
    let get = async |id| shop.client.clone().get_user(root.request(GetUserRequest { id })).await;
    let shown = get(ann.id).await.unwrap().into_inner();
    assert_eq!((shown.id, shown.role(), shown.disabled), (ann.id, Role::User, Some(false)));
    for id in [0, -1, 77, i64::MAX, i64::MIN] {
        expect_error(get(id).await, NotFound, "NOT_FOUND");
        expect_error(root.updates(id, None, Some(true)).await, NotFound, "NOT_FOUND");
    }
    let changed = root.updates(ann.id, Some(Role::Admin), Some(true)).await.unwrap();
    assert_eq!((changed.role(), changed.disabled), (Role::Admin, Some(true)));
    assert_eq!(get(ann.id).await.unwrap().into_inner(), changed);
    for role in [Role::Service as i32, Role::Unspecified as i32, 77] {
        let request = UpdateUserRequest { id: ann.id, role: Some(role), disabled: None };
        let status = expect_error(
            shop.client.clone().update_user(root.request(request)).await,
            InvalidArgument,
            "VALIDATION_FAILED",
        );
        assert_eq!(fields(&status), ["role"]);
    }
}

#[tokio::test]
async fn an_update_without_a_change_revokes_no_session() {
    let shop = TestAuth::start().await;
    let (root, ann) = (shop.admin("root").await, shop.registers_and_signs_in("ann").await);
    root.updates(ann.id(), None, None).await.unwrap();
    root.updates(ann.id(), Some(Role::User), Some(false)).await.unwrap();
    let revoked: i64 = sqlx::query_scalar("select count(*) from auth.session where ended_at is not null")
        .fetch_one(&mut shop.connection().await)
        .await
        .unwrap();
    assert_eq!(revoked, 0);
    shop.me(ann.token()).await.unwrap();
}

#[tokio::test]
async fn the_last_enabled_admin_cannot_be_removed() {
    let shop = TestAuth::start().await;
    let (root, second) = (shop.admin("root").await, shop.admin("second").await);
    // Both admins are changed concurrently: one of them must remain.
    let (one, other) = tokio::join!(
        root.updates(second.id(), Some(Role::User), None),
        second.updates(root.id(), None, Some(true))
    );
    let (remaining, status) = match (one, other) {
        (Ok(_), Err(status)) => (root, status),
        (Err(status), Ok(_)) => (second, status),
        both => panic!("{both:?}"),
    };
    assert!([InvalidArgument, tonic::Code::Unauthenticated].contains(&status.code()), "{status:?}");
    let status = expect_error(
        remaining.updates(remaining.id(), Some(Role::User), None).await,
        InvalidArgument,
        "VALIDATION_FAILED",
    );
    assert_eq!(fields(&status), ["role"]);
    let status = expect_error(
        remaining.updates(remaining.id(), None, Some(true)).await,
        InvalidArgument,
        "VALIDATION_FAILED",
    );
    assert_eq!(fields(&status), ["disabled"]);
    shop.me(remaining.token()).await.unwrap();
}

#[tokio::test]
async fn admin_methods_are_forbidden_for_users() {
    let shop = TestAuth::start().await;
    let ann = shop.registers_and_signs_in("ann").await;
    expect_error(ann.lists_users(ListUsersRequest::default()).await, PermissionDenied, "FORBIDDEN");
    expect_error(ann.updates(ann.id(), Some(Role::Admin), None).await, PermissionDenied, "FORBIDDEN");
    let request = ann.request(GetUserRequest { id: ann.id() });
    expect_error(shop.client.clone().get_user(request).await, PermissionDenied, "FORBIDDEN");
}

#[tokio::test]
async fn a_search_scans_a_bounded_number_of_accounts_per_page() {
    let shop = TestAuth::start().await;
    shop.registers("needle-old").await;
    let sql = "insert into auth.account (username, email, password_hash, created_at)
               select 'user-' || n, 'user-' || n || '@example.com', 'x', now() from generate_series(1, 25000) n";
    sqlx::query(sql).execute(&mut shop.connection().await).await.unwrap();
    let admin = shop.admin("boss").await;
    shop.registers("needle-new").await;
    let (mut names, mut pages, mut cursor) = (Vec::new(), 0, None);
    loop {
        let request =
            ListUsersRequest { q: Some("NEEDLE".to_owned()), cursor, ..ListUsersRequest::default() };
        let page = admin.lists_users(request).await.unwrap();
        names.extend(page.items.into_iter().map(|user| user.username));
        pages += 1;
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(names, ["needle-new", "needle-old"]);
    assert_eq!(pages, 2, "a page scans a bounded number of accounts");
}
