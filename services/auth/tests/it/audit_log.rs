//! The audit log: each act of an admin has one record, and the lists of records.

use std::collections::HashSet;

use serde_json::{Value, json};
use shoppee_kit::testing::{eventually, mutating_methods};
use shoppee_proto::{
    Object, Timestamp,
    audit::v1::{
        AuditActor, AuditRecord, AuditTarget, ListAuditRecordsRequest, ListAuditRecordsResponse,
        audit_service_client::AuditServiceClient,
    },
    auth::v1::*,
};
use tonic::{Code, Request, Response, Status, transport::Channel};
use uuid::Uuid;

use crate::shop::{PASSWORD, Person, TestAuth, expect_error};

/// The methods with which users act on what they own.
const OWN_ACTS: [&str; 5] = ["ChangePassword", "CreateWsTicket", "Logout", "LogoutAll", "RevokeSession"];

fn client(shop: &TestAuth) -> AuditServiceClient<Channel> {
    let channel =
        shoppee_kit::client::channel(&format!("http://{}", shop.settings.listen_addr)).expect("a URL");
    AuditServiceClient::new(channel)
}

async fn try_list(
    shop: &TestAuth,
    person: &Person,
    request: ListAuditRecordsRequest,
) -> Result<ListAuditRecordsResponse, Status> {
    client(shop).list_audit_records(person.request(request)).await.map(Response::into_inner)
}

/// Returns all records that a request selects, page by page.
async fn list(shop: &TestAuth, person: &Person, request: ListAuditRecordsRequest) -> Vec<AuditRecord> {
    let (mut records, mut cursor) = (Vec::new(), None);
    loop {
        let request = ListAuditRecordsRequest { cursor, ..request.clone() };
        let page = try_list(shop, person, request).await.expect("lists");
        records.extend(page.items);
        cursor = page.next_cursor;
        if cursor.is_none() {
            return records;
        }
    }
}

async fn all(shop: &TestAuth, person: &Person) -> Vec<AuditRecord> {
    list(shop, person, ListAuditRecordsRequest::default()).await
}

fn object(fields: Value) -> Object {
    serde_json::from_value(fields).expect("an object")
}

/// Builds a request of a person with an id.
fn request<T>(person: &Person, id: &str, message: T) -> Request<T> {
    let mut request = person.request(message);
    request.metadata_mut().insert("x-request-id", id.parse().expect("an id"));
    request
}

fn new_account(name: &str, key: Option<&str>) -> CreateServiceAccountRequest {
    CreateServiceAccountRequest {
        name: name.to_owned(),
        scopes: vec!["orders:ship".to_owned()],
        expires_in: None,
        idempotency_key: key.map(str::to_owned),
    }
}

#[tokio::test]
async fn each_act_of_an_admin_has_one_record() {
    let shop = TestAuth::start().await;
    let root = shop.admin("root").await;
    let ann = shop.registers("ann").await;
    let mut auth = shop.client.clone();
    for method in mutating_methods("shoppee.auth.v1") {
        if OWN_ACTS.contains(&method.as_str()) {
            continue;
        }
        let id = format!("act.{method}");
        let account = auth.create_service_account(root.request(new_account("store", None))).await.unwrap();
        let account = account.into_inner().id;
        let action = match method.as_str() {
            "UpdateUser" => {
                let change = UpdateUserRequest { id: ann.id, role: None, disabled: Some(true) };
                auth.update_user(request(&root, &id, change)).await.unwrap();
                "user.update"
            }
            "CreateServiceAccount" => {
                auth.create_service_account(request(&root, &id, new_account("feed", None))).await.unwrap();
                "service_account.create"
            }
            "RotateServiceAccount" => {
                let rotation = RotateServiceAccountRequest { id: account.clone(), idempotency_key: None };
                auth.rotate_service_account(request(&root, &id, rotation)).await.unwrap();
                "service_account.rotate"
            }
            "RevokeServiceAccount" => {
                let revocation = RevokeServiceAccountRequest { id: account.clone() };
                auth.revoke_service_account(request(&root, &id, revocation)).await.unwrap();
                "service_account.revoke"
            }
            other => panic!("{other} needs an audit record: act here, or add it to OWN_ACTS"),
        };
        let records = all(&shop, &root).await;
        let records: Vec<_> = records.iter().filter(|one| one.request_id() == id).collect();
        assert_eq!(records.len(), 1, "{method}: {records:?}");
        assert_eq!(records[0].action, action);
    }
}

#[tokio::test]
async fn a_record_has_actor_target_change_and_request_and_no_secret() {
    let shop = TestAuth::start().await;
    let root = shop.admin("root").await;
    let ann = shop.registers("ann").await;
    let mut auth = shop.client.clone();
    let change = UpdateUserRequest { id: ann.id, role: Some(Role::Admin.into()), disabled: Some(false) };
    auth.update_user(request(&root, "promotion", change)).await.unwrap();
    let account =
        auth.create_service_account(root.request(new_account("store", None))).await.unwrap().into_inner();

    let records = all(&shop, &root).await;
    let [creation, update] = &records[..] else { panic!("{records:?}") };
    let admin =
        AuditActor { kind: "admin".to_owned(), id: root.id().to_string(), name: Some("root".to_owned()) };
    let expected = AuditRecord {
        id: update.id.clone(),
        at: update.at,
        service: "auth".to_owned(),
        actor: Some(admin.clone()),
        action: "user.update".to_owned(),
        target: Some(AuditTarget { kind: "user".to_owned(), id: ann.id.to_string() }),
        before: Some(object(json!({"role": "user"}))),
        after: Some(object(json!({"role": "admin"}))),
        request_id: Some("promotion".to_owned()),
    };
    assert_eq!(*update, expected);
    assert_eq!(creation.actor, Some(admin));
    assert_eq!(creation.before, None);
    let fields = json!({"name": "store", "scopes": ["orders:ship"], "expires_at": null});
    assert_eq!(creation.after, Some(object(fields)));
    // The service gave the request an id.
    assert!(creation.request_id().parse::<Uuid>().is_ok(), "{creation:?}");

    let stored: Vec<String> = sqlx::query_scalar("select r::text from auth.audit_record r")
        .fetch_all(&mut shop.connection().await)
        .await
        .unwrap();
    for secret in [account.client_secret(), PASSWORD, "@example.com", root.token()] {
        assert!(stored.iter().all(|record| !record.contains(secret)), "{secret}: {stored:?}");
    }
}

#[tokio::test]
async fn a_repeat_an_act_without_a_change_and_a_refusal_have_no_record() {
    let shop = TestAuth::start().await;
    let root = shop.admin("root").await;
    let ann = shop.registers_and_signs_in("ann").await;
    let mut auth = shop.client.clone();
    let mut account = String::new();
    for _ in 0..3 {
        let created =
            auth.create_service_account(root.request(new_account("store", Some("key")))).await.unwrap();
        account = created.into_inner().id;
    }
    let revocation = RevokeServiceAccountRequest { id: account.clone() };
    for _ in 0..2 {
        auth.revoke_service_account(root.request(revocation.clone())).await.unwrap();
    }
    root.updates(ann.id(), Some(Role::User), Some(false)).await.unwrap();
    let last_admin = root.updates(root.id(), Some(Role::User), None).await;
    expect_error(last_admin, Code::InvalidArgument, "VALIDATION_FAILED");
    let rotation = RotateServiceAccountRequest { id: account, idempotency_key: None };
    let revoked = auth.rotate_service_account(root.request(rotation)).await;
    expect_error(revoked, Code::NotFound, "NOT_FOUND");
    let forbidden = auth.create_service_account(ann.request(new_account("own", None))).await;
    expect_error(forbidden, Code::PermissionDenied, "FORBIDDEN");
    ann.changes_password(PASSWORD, "another correct horse").await.unwrap();

    let records = all(&shop, &root).await;
    let actions: Vec<_> = records.iter().map(|record| record.action.as_str()).collect();
    assert_eq!(actions, ["service_account.revoke", "service_account.create"]);
}

#[tokio::test]
async fn the_initial_admin_has_a_record_of_the_system() {
    let shop = TestAuth::start().await;
    let replica = shop
        .replica_with(|settings| {
            settings.admin_username = Some("root".to_owned());
            settings.admin_email = Some("root@shop.example".to_owned());
            settings.admin_password = Some("the first admin's own".into());
        })
        .await;
    let root = replica.try_sign_in("root", "the first admin's own").await.unwrap();
    let records = all(&replica, &root).await;
    let [creation] = &records[..] else { panic!("{records:?}") };
    let actor = AuditActor { kind: "system".to_owned(), id: "ADMIN_USERNAME".to_owned(), name: None };
    assert_eq!(creation.actor, Some(actor));
    assert_eq!(creation.after, Some(object(json!({"username": "root", "role": "admin"}))));
    assert_eq!(creation.request_id, None);
}

/// The first of the records that [`insert_history`] inserts, in Unix seconds.
const HISTORY_START: i64 = 1_700_000_000;

/// Inserts 30 000 records, one a second: every third by `service:feed`, every hundredth of `user.update`, and each target
/// has three.
async fn insert_history(shop: &TestAuth) {
    sqlx::query(
        "insert into auth.audit_record (id, at, actor, action, target)
         select (lpad(to_hex(($1 + n) * 1000), 12, '0') || '7' || lpad(to_hex(n), 19, '0'))::uuid,
                to_timestamp($1 + n),
                case when n % 3 = 0 then 'service:feed' else 'admin:1' end,
                case when n % 100 = 1 then 'user.update' else 'user.create' end,
                'user:' || n % 10000
         from generate_series(0, 29999) as n",
    )
    .bind(HISTORY_START)
    .execute(&mut shop.connection().await)
    .await
    .expect("inserts");
}

#[tokio::test]
async fn each_filter_selects_its_records_page_by_page() {
    let shop = TestAuth::start().await;
    let root = shop.admin("root").await;
    insert_history(&shop).await;
    let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let at = |offset: i64| Some(Timestamp { seconds: HISTORY_START + offset, nanos: 0 });
    let limit = Some(100);
    for (target, actor, action, since, until, count) in [
        ("user:42", "", "", None, None, 3),
        ("user:42", "service:feed", "", None, None, 1),
        ("user:42", "", "user.update", None, None, 0),
        ("user:101", "admin:1", "user.update", at(10_000), at(30_000), 1),
        ("user:101", "", "user.update", at(10_000), at(30_000), 2),
        ("", "service:feed", "", at(0), at(3000), 1000),
        ("", "", "user.update", None, None, 300),
        ("", "admin:1", "user.update", None, None, 200),
        // None, though both are frequent.
        ("", "service:feed", "user.revoke", None, None, 0),
        ("", "", "", at(100), at(350), 250),
        ("", "", "", at(29_990), None, 10),
        ("", "admin:2", "", None, None, 0),
    ] {
        let (target, actor, action) = (text(target), text(actor), text(action));
        let request = ListAuditRecordsRequest { target, actor, action, since, until, limit, cursor: None };
        let records = list(&shop, &root, request.clone()).await;
        assert_eq!(records.len(), count, "{request:?}");
        let ids: HashSet<_> = records.iter().map(|record| &record.id).collect();
        assert_eq!(ids.len(), count, "each once: {request:?}");
        assert!(records.is_sorted_by(|newer, older| newer.at > older.at), "{request:?}");
    }
    // A page without an end is refused, and so is a page for a user.
    let odd = ListAuditRecordsRequest { actor: text("root"), ..ListAuditRecordsRequest::default() };
    expect_error(try_list(&shop, &root, odd).await, Code::InvalidArgument, "INVALID_REQUEST");
    let ann = shop.registers_and_signs_in("ann").await;
    let refused = try_list(&shop, &ann, ListAuditRecordsRequest::default()).await;
    expect_error(refused, Code::PermissionDenied, "FORBIDDEN");
}

#[tokio::test]
async fn records_are_deleted_after_the_retention() {
    let shop = TestAuth::start().await;
    let root = shop.admin("root").await;
    root.updates(root.id(), None, Some(false)).await.unwrap();
    shop.client.clone().create_service_account(root.request(new_account("store", None))).await.unwrap();
    // Old, and more than a statement deletes.
    insert_history(&shop).await;
    let count = async || {
        let query = sqlx::query_scalar::<_, i64>("select count(*) from auth.audit_record");
        query.fetch_one(&mut shop.connection().await).await.expect("counts")
    };
    assert_eq!(count().await, 30_001);
    // A worker runs when it starts.
    let replica = shop.replica().await;
    eventually("the old records are deleted", || async { count().await == 1 }).await;
    assert_eq!(all(&replica, &root).await[0].action, "service_account.create");
}
