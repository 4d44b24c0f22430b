//! Service accounts: their credentials, tokens, rotation and revocation.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use shoppee_kit::{
    caller::{Claims, Role, TokenError, Verifier},
    testing::eventually,
};
use shoppee_proto::auth::v1::*;
use sqlx::Row as _;
use tonic::{Code, Response, Status};
use uuid::Uuid;

use crate::shop::{ORDER_SECRET, Person, TestAuth, code_and_reason, expect_error, fields};

/// Seven days and an hour.
const AFTER_PREVIOUS_SECRET: Duration = Duration::from_hours(7 * 24 + 1);

async fn creates(
    admin: &Person,
    scopes: &[&str],
    key: Option<&str>,
    expires_in: Option<i64>,
) -> Result<Response<ServiceAccount>, Status> {
    let request = CreateServiceAccountRequest {
        name: "warehouse".to_owned(),
        scopes: scopes.iter().map(|scope| (*scope).to_owned()).collect(),
        expires_in,
        idempotency_key: key.map(str::to_owned),
    };
    admin.client.clone().create_service_account(admin.request(request)).await
}

async fn account(admin: &Person, scopes: &[&str]) -> ServiceAccount {
    creates(admin, scopes, None, None).await.expect("creates").into_inner()
}

async fn rotates(admin: &Person, id: &str, key: Option<&str>) -> Result<Response<ServiceAccount>, Status> {
    let request = RotateServiceAccountRequest { id: id.to_owned(), idempotency_key: key.map(str::to_owned) };
    admin.client.clone().rotate_service_account(admin.request(request)).await
}

async fn revokes(admin: &Person, id: &str) -> Result<Response<()>, Status> {
    let request = RevokeServiceAccountRequest { id: id.to_owned() };
    admin.client.clone().revoke_service_account(admin.request(request)).await
}

async fn shows(admin: &Person, id: &str) -> ServiceAccount {
    let request = GetServiceAccountRequest { id: id.to_owned() };
    admin.client.clone().get_service_account(admin.request(request)).await.expect("exists").into_inner()
}

async fn issues(
    shop: &TestAuth,
    id: &str,
    secret: &str,
    scope: Option<&str>,
) -> Result<ServiceToken, Status> {
    let request = IssueServiceTokenRequest {
        client_id: id.to_owned(),
        client_secret: secret.to_owned(),
        scope: scope.map(str::to_owned),
    };
    shop.client.clone().issue_service_token(request).await.map(Response::into_inner)
}

fn secret(account: &ServiceAccount) -> &str {
    account.client_secret.as_deref().expect("a secret")
}

fn claims(token: &ServiceToken) -> Claims {
    let payload = token.access_token.split('.').nth(1).expect("three parts");
    serde_json::from_slice(&BASE64.decode(payload).expect("base64url")).expect("claims")
}

#[track_caller]
fn refused(outcome: Result<ServiceToken, Status>) {
    expect_error(outcome, Code::Unauthenticated, "INVALID_CREDENTIALS");
}

#[tokio::test]
async fn an_account_gets_tokens_with_its_scopes() {
    let shop = TestAuth::start().await;
    let root = shop.admin("root").await;
    let created = account(&root, &["orders:ship", "events:watch"]).await;
    assert_eq!(created.scopes, ["events:watch", "orders:ship"]);
    assert_eq!(secret(&created).len(), 43);

    let token = issues(&shop, &created.id, secret(&created), None).await.unwrap();
    assert_eq!((token.expires_in, token.scope.as_str()), (900, "events:watch orders:ship"));
    let claims = claims(&token);
    assert_eq!((claims.role, claims.user_id, claims.sub.as_str()), (Role::Service, 0, "0"));
    assert_eq!((claims.sid.to_string(), claims.exp - claims.iat), (created.id.clone(), 900));
    assert_eq!(claims.scope.as_deref(), Some("events:watch orders:ship"));
    assert_eq!((claims.client_id.as_deref(), claims.username.as_str()), (Some(&*created.id), "warehouse"));

    let narrow = issues(&shop, &created.id, secret(&created), Some("orders:ship")).await.unwrap();
    assert_eq!(narrow.scope, "orders:ship");
    for wide in ["users:read", "orders:ship users:read", "*", "ORDERS:SHIP"] {
        let status = issues(&shop, &created.id, secret(&created), Some(wide)).await;
        let status = expect_error(status, Code::InvalidArgument, "VALIDATION_FAILED");
        assert_eq!(fields(&status), ["scope"]);
    }

    let shown = shows(&root, &created.id).await;
    assert!(shown.last_used_at.is_some() && shown.client_secret.is_none() && shown.revoked_at.is_none());
    let list = ListServiceAccountsRequest::default();
    let listed = root.client.clone().list_service_accounts(root.request(list)).await.unwrap().into_inner();
    assert_eq!(listed.items, [shown]);
}

#[tokio::test]
async fn wrong_credentials_have_one_answer() {
    let shop = TestAuth::start().await;
    let root = shop.admin("root").await;
    let (one, two) = (account(&root, &["orders:read"]).await, account(&root, &["orders:read"]).await);
    let unknown = "019bc0e2-1f3a-7c55-8d20-6e9b4a7c0d31";
    for (id, text) in [
        (one.id.as_str(), secret(&two)),
        (&one.id, ""),
        (&one.id, &secret(&one)[1..]),
        (unknown, secret(&one)),
        ("warehouse", secret(&one)),
        ("", ""),
        ("order", secret(&one)),
        (&one.id, ORDER_SECRET),
        ("\0", "\0"),
    ] {
        let status = issues(&shop, id, text, None).await.unwrap_err();
        assert_eq!(
            code_and_reason(&status),
            (Code::Unauthenticated, "INVALID_CREDENTIALS".to_owned()),
            "{id}"
        );
        assert_eq!(status.message(), "the name or the password is wrong");
        // The secret is checked before the scope, here an unknown one.
        refused(issues(&shop, id, text, Some("nothing:at-all")).await);
    }
    issues(&shop, &one.id.to_uppercase(), secret(&one), None).await.expect("a UUID in any case");
}

#[tokio::test]
async fn a_client_of_the_setting_may_hold_stock_only() {
    let shop = TestAuth::start().await;
    let token = issues(&shop, "order", ORDER_SECRET, None).await.unwrap();
    assert_eq!((token.expires_in, token.scope.as_str()), (900, "stock:hold"));
    assert_eq!(claims(&token).client_id.as_deref(), Some("order"));
    let wide = issues(&shop, "order", ORDER_SECRET, Some("stock:hold orders:read")).await;
    expect_error(wide, Code::InvalidArgument, "VALIDATION_FAILED");
}

#[tokio::test]
async fn a_rotation_keeps_the_previous_secret_valid_for_seven_days() {
    let shop = TestAuth::start().await;
    let root = shop.admin("root").await;
    let first = account(&root, &["orders:read"]).await;
    let second = rotates(&root, &first.id, None).await.unwrap().into_inner();
    assert_ne!(secret(&first), secret(&second));
    assert!(second.previous_secret_expires_at.is_some());
    for valid in [&first, &second] {
        issues(&shop, &first.id, secret(valid), None).await.unwrap();
    }
    // The next rotation ends the first secret.
    let third = rotates(&root, &first.id, None).await.unwrap().into_inner();
    refused(issues(&shop, &first.id, secret(&first), None).await);
    for valid in [&second, &third] {
        issues(&shop, &first.id, secret(valid), None).await.unwrap();
    }
    shop.advance_clock(AFTER_PREVIOUS_SECRET);
    refused(issues(&shop, &first.id, secret(&second), None).await);
    issues(&shop, &first.id, secret(&third), None).await.unwrap();
}

#[tokio::test]
async fn two_rotations_at_once_leave_two_valid_secrets() {
    let shop = TestAuth::start().await;
    let root = shop.admin("root").await;
    let first = account(&root, &["orders:read"]).await;
    let (one, two) = tokio::join!(rotates(&root, &first.id, None), rotates(&root, &first.id, None));
    let (one, two) = (one.unwrap().into_inner(), two.unwrap().into_inner());
    assert_ne!(secret(&one), secret(&two));
    for valid in [&one, &two] {
        issues(&shop, &first.id, secret(valid), None).await.unwrap();
    }
    refused(issues(&shop, &first.id, secret(&first), None).await);
}

#[tokio::test]
async fn a_revocation_ends_secrets_and_tokens_within_a_second_everywhere() {
    let shop = TestAuth::start().await;
    let root = shop.admin("root").await;
    let (one, other) = (account(&root, &["users:read"]).await, account(&root, &["users:read"]).await);
    let token = issues(&shop, &one.id, secret(&one), None).await.unwrap().access_token;
    let other_token = issues(&shop, &other.id, secret(&other), None).await.unwrap().access_token;
    let replica = shop.replica().await;

    // Another process, which polls.
    let verifier = Verifier::new(shop.process.process.clock.clone());
    let state = |cursor| async {
        shop.client.clone().get_jwks(GetJwksRequest { cursor }).await.unwrap().into_inner()
    };
    let first = state(None).await;
    let cursor = first.cursor.clone();
    verifier.update(first);
    assert!(verifier.verify_any(&token).is_ok());

    revokes(&root, &one.id).await.unwrap();
    let started = std::time::Instant::now();
    let reads = |shop: &TestAuth| {
        let (mut client, request) =
            (shop.client.clone(), crate::shop::with(&token, ListUsersRequest::default()));
        async move { client.list_users(request).await }
    };
    expect_error(reads(&shop).await, Code::Unauthenticated, "SESSION_REVOKED");
    eventually("the replica refuses the token", || async { reads(&replica).await.is_err() }).await;
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());

    let next = state(Some(cursor)).await;
    assert_eq!(next.ended_sessions.len(), 1);
    assert!(next.ended_sessions[0].service && next.ended_sessions[0].sid == one.id);
    verifier.update(next);
    assert_eq!(verifier.verify_any(&token).unwrap_err(), TokenError::Revoked);
    assert!(verifier.verify_any(&other_token).is_ok());
    // A process that starts now gets the whole list.
    assert!(state(None).await.ended_sessions.iter().any(|ended| ended.sid == one.id));

    refused(issues(&shop, &one.id, secret(&one), None).await);
    expect_error(rotates(&root, &one.id, None).await, Code::NotFound, "NOT_FOUND");
    revokes(&root, &one.id).await.expect("a repeat is no error");
    assert!(shows(&root, &one.id).await.revoked_at.is_some());
    for unknown in ["019bc0e2-1f3a-7c55-8d20-6e9b4a7c0d31", "", "x"] {
        expect_error(revokes(&root, unknown).await, Code::NotFound, "NOT_FOUND");
        expect_error(rotates(&root, unknown, None).await, Code::NotFound, "NOT_FOUND");
    }
}

#[tokio::test]
async fn no_token_outlives_its_account() {
    let shop = TestAuth::start().await;
    let root = shop.admin("root").await;
    let short = creates(&root, &["users:read"], None, Some(60)).await.unwrap().into_inner();
    let token = issues(&shop, &short.id, secret(&short), None).await.unwrap();
    assert!(token.expires_in <= 60, "{}", token.expires_in);
    shop.advance_clock(Duration::from_secs(61));
    refused(issues(&shop, &short.id, secret(&short), None).await);
    let request = crate::shop::with(&token.access_token, ListUsersRequest::default());
    expect_error(shop.client.clone().list_users(request).await, Code::Unauthenticated, "TOKEN_EXPIRED");
}

#[tokio::test]
async fn a_repeat_with_the_same_key_gets_the_same_secret() {
    let shop = TestAuth::start().await;
    let root = shop.admin("root").await;
    let replayed =
        |response: &Response<ServiceAccount>| response.metadata().contains_key("idempotent-replayed");
    let first = creates(&root, &["orders:read"], Some("k"), None).await.unwrap();
    let repeat = creates(&root, &["orders:read"], Some("k"), None).await.unwrap();
    assert!(!replayed(&first) && replayed(&repeat));
    assert_eq!(first.get_ref(), repeat.get_ref());
    let other = creates(&root, &["orders:ship"], Some("k"), None).await;
    expect_error(other, Code::InvalidArgument, "IDEMPOTENCY_KEY_REUSED");

    let account = first.into_inner();
    let rotated = rotates(&root, &account.id, Some("k")).await.unwrap().into_inner();
    let again = rotates(&root, &account.id, Some("k")).await.unwrap();
    assert!(replayed(&again));
    assert_eq!(again.into_inner(), rotated);
    issues(&shop, &account.id, secret(&account), None).await.expect("rotated once");

    // Another replica, after a rotation of the signing secret.
    let replica = shop
        .replica_with(|settings| {
            settings.jwt_secret_previous = Some(settings.jwt_secret.clone());
            settings.jwt_secret = "another secret of the tests with more than 32 bytes".into();
        })
        .await;
    let there = Person { client: replica.client.clone(), tokens: root.tokens.clone() };
    let repeat = rotates(&there, &account.id, Some("k")).await.unwrap().into_inner();
    assert_eq!(repeat, rotated);

    // The keys of another admin are others.
    let second_admin = shop.admin("second").await;
    let own = creates(&second_admin, &["orders:read"], Some("k"), None).await.unwrap();
    assert!(!replayed(&own) && own.get_ref().id != account.id);

    shop.advance_clock(Duration::from_hours(25));
    let root = shop.signs_in("root").await;
    let late = creates(&root, &["orders:ship"], Some("k"), None).await.unwrap();
    assert!(!replayed(&late), "the key has expired");
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_with_one_key_create_one_account() {
    let shop = TestAuth::start().await;
    let root = shop.admin("root").await;
    let requests = (0..8).map(|_| creates(&root, &["orders:read"], Some("same"), None));
    let accounts = futures_util::future::join_all(requests).await;
    let accounts: Vec<_> = accounts.into_iter().map(|response| response.unwrap().into_inner()).collect();
    assert!(accounts.iter().all(|account| *account == accounts[0]));
    let list = ListServiceAccountsRequest::default();
    let listed = root.client.clone().list_service_accounts(root.request(list)).await.unwrap().into_inner();
    assert_eq!(listed.items.len(), 1);
}

#[tokio::test]
async fn invalid_accounts_are_refused() {
    let shop = TestAuth::start().await;
    let root = shop.admin("root").await;
    for (name, scopes, expires_in, field) in [
        ("", vec!["orders:read"], None, "name"),
        ("a b", vec!["orders:read"], None, "name"),
        ("a", vec![], None, "scopes"),
        ("a", vec!["orders:write"], None, "scopes"),
        ("a", vec!["orders:read", "orders:read"], None, "scopes"),
        ("a", vec!["orders:read"; 1000], None, "scopes"),
        ("a", vec!["orders:read"], Some(59), "expires_in"),
        ("a", vec!["orders:read"], Some(i64::MAX), "expires_in"),
    ] {
        let request = CreateServiceAccountRequest {
            name: name.to_owned(),
            scopes: scopes.into_iter().map(str::to_owned).collect(),
            expires_in,
            idempotency_key: None,
        };
        let outcome = root.client.clone().create_service_account(root.request(request)).await;
        assert_eq!(fields(&expect_error(outcome, Code::InvalidArgument, "VALIDATION_FAILED")), [field]);
    }
    let list = |cursor: &str, limit| ListServiceAccountsRequest { limit, cursor: Some(cursor.to_owned()) };
    for request in [list("x", None), list("", Some(0))] {
        let outcome = root.client.clone().list_service_accounts(root.request(request)).await;
        expect_error(outcome, Code::InvalidArgument, "INVALID_REQUEST");
    }
}

#[tokio::test]
async fn accounts_are_listed_in_pages() {
    let shop = TestAuth::start().await;
    let root = shop.admin("root").await;
    let mut created = Vec::new();
    for _ in 0..5 {
        created.insert(0, account(&root, &["orders:read"]).await.id);
    }
    let (mut seen, mut cursor) = (Vec::new(), None);
    loop {
        let request = ListServiceAccountsRequest { limit: Some(2), cursor };
        let page =
            root.client.clone().list_service_accounts(root.request(request)).await.unwrap().into_inner();
        seen.extend(page.items.into_iter().map(|account| account.id));
        cursor = page.next_cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, created);
}

#[tokio::test]
async fn tokens_of_one_account_are_limited_and_strangers_lock_nobody_out() {
    let shop = TestAuth::start().await;
    let root = shop.admin("root").await;
    let (one, other) = (account(&root, &["orders:read"]).await, account(&root, &["orders:read"]).await);
    for _ in 0..100 {
        refused(issues(&shop, &one.id, "wrong", None).await);
    }
    let mut issued = 0;
    let refusal = loop {
        match issues(&shop, &one.id, secret(&one), None).await {
            Ok(_) => issued += 1,
            Err(status) => break status,
        }
        assert!(issued < 200, "no limit");
    };
    // The loop takes some seconds on a slow machine.
    assert!(issued >= 60, "{issued}");
    assert_eq!(code_and_reason(&refusal), (Code::ResourceExhausted, "TOO_MANY_ATTEMPTS".to_owned()));
    issues(&shop, &other.id, secret(&other), None).await.unwrap();
    shop.advance_clock(Duration::from_secs(2));
    issues(&shop, &one.id, secret(&one), None).await.unwrap();
}

#[tokio::test]
async fn a_refused_scope_neither_counts_nor_marks_the_account_as_used() {
    let shop = TestAuth::start().await;
    let root = shop.admin("root").await;
    let created = account(&root, &["orders:read"]).await;
    for _ in 0..100 {
        let wide = issues(&shop, &created.id, secret(&created), Some("users:read")).await;
        expect_error(wide, Code::InvalidArgument, "VALIDATION_FAILED");
    }
    assert_eq!(shows(&root, &created.id).await.last_used_at, None);
    issues(&shop, &created.id, secret(&created), None).await.expect("no token was counted");
    assert!(shows(&root, &created.id).await.last_used_at.is_some());
}

#[tokio::test]
async fn no_secret_is_stored() {
    let shop = TestAuth::start().await;
    let root = shop.admin("root").await;
    let created = creates(&root, &["orders:read"], Some("k"), None).await.unwrap().into_inner();
    let rotated = rotates(&root, &created.id, Some("k")).await.unwrap().into_inner();
    let mut conn = shop.connection().await;
    let mut stored = String::new();
    for query in [
        "select account::text as row from auth.service_account account",
        "select used::text as row from auth.service_account_key used",
        "select encode(answer, 'escape') as row from auth.service_account_key",
    ] {
        for row in sqlx::query(query).fetch_all(&mut conn).await.unwrap() {
            stored += &row.get::<String, _>("row");
        }
    }
    assert!(stored.contains("warehouse"), "the rows are read");
    for account in [&created, &rotated] {
        let text = secret(account);
        let hex = |bytes: &[u8]| format!("{:x}", Uuid::from_slice(&bytes[..16]).unwrap().as_simple());
        let decoded = BASE64.decode(text).unwrap();
        let (encoded, raw) = (hex(text.as_bytes()), hex(&decoded));
        assert!(!stored.contains(text) && !stored.contains(&encoded) && !stored.contains(&raw));
    }
}
