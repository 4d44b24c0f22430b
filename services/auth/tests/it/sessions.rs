//! Revocation: every way to end a session is effective within a second on every replica. The gateways use the same
//! method.

use std::time::Duration;

use shoppee_kit::{
    caller::{TokenError, Verifier},
    load_balancer::LoadBalancer,
    testing::TestProcess,
    verifier_sync,
};
use shoppee_proto::auth::v1::{
    CreateWsTicketRequest, GetJwksRequest, GetJwksResponse, ListSessionsRequest, LogoutAllRequest,
    RevokeSessionRequest, Role,
};
use sqlx::Connection as _;
use tokio::sync::broadcast;
use tonic::Code::{NotFound, Unauthenticated};

use crate::shop::{PASSWORD, Person, TestAuth, expect_error, fields};

#[tokio::test]
async fn sessions_are_listed_newest_first() {
    let shop = TestAuth::start().await;
    let first = shop.registers_and_signs_in("ann").await;
    shop.registers_and_signs_in("bob").await;
    shop.advance_clock(Duration::from_mins(1));
    let second = shop.signs_in("ann").await;
    shop.advance_clock(Duration::from_mins(1));
    shop.refreshes(&first.tokens.refresh_token).await.unwrap();

    let sessions = second.sessions().await;
    let current: Vec<bool> = sessions.iter().map(|session| session.current).collect();
    assert_eq!(current, [true, false]);
    assert!(sessions.iter().all(|session| session.user_agent == "the tests"));
    let used_for: Vec<i64> = sessions
        .iter()
        .map(|session| session.last_used_at.unwrap().seconds - session.created_at.unwrap().seconds)
        .collect();
    assert_eq!(used_for[0], 0);
    assert!((120..=121).contains(&used_for[1]), "{used_for:?}");
}

/// Asserts that `action` revokes Ann's session, on this replica and on another one.
async fn revokes<F: AsyncFnOnce(&TestAuth, &Person)>(action: F) {
    let shop = TestAuth::start().await;
    let replica = shop.replica().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let bob = shop.registers_and_signs_in("bob").await;
    replica.me(ann.token()).await.expect("is accepted");

    action(&shop, &ann).await;

    expect_error(shop.me(ann.token()).await, Unauthenticated, "SESSION_REVOKED");
    replica.rejects_within_a_second(ann.token()).await;
    let outcome = replica.client.clone().create_ws_ticket(ann.request(CreateWsTicketRequest {})).await;
    expect_error(outcome, Unauthenticated, "SESSION_REVOKED");
    expect_error(replica.refreshes(&ann.tokens.refresh_token).await, Unauthenticated, "SESSION_REVOKED");
    assert!(replica.me(bob.token()).await.is_ok(), "no other session");
    // A replica that starts later rejects it from the beginning.
    expect_error(shop.replica().await.me(ann.token()).await, Unauthenticated, "SESSION_REVOKED");
}

#[tokio::test]
async fn a_logout_revokes_the_session() {
    revokes(async |_, ann| ann.logs_out().await).await;
}

#[tokio::test]
async fn a_logout_of_all_sessions_revokes_the_session() {
    revokes(async |shop, _| {
        let elsewhere = shop.signs_in("ann").await;
        shop.client.clone().logout_all(elsewhere.request(LogoutAllRequest {})).await.unwrap();
        expect_error(shop.me(elsewhere.token()).await, Unauthenticated, "SESSION_REVOKED");
    })
    .await;
}

#[tokio::test]
async fn a_revocation_by_another_device_revokes_the_session() {
    revokes(async |shop, ann| {
        let elsewhere = shop.signs_in("ann").await;
        let id = ann.sessions().await.into_iter().find(|session| session.current).unwrap().id;
        shop.client.clone().revoke_session(elsewhere.request(RevokeSessionRequest { id })).await.unwrap();
        assert_eq!(elsewhere.sessions().await.len(), 1);
        shop.me(elsewhere.token()).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_password_change_elsewhere_revokes_the_session() {
    revokes(async |shop, _| {
        let elsewhere = shop.signs_in("ann").await;
        elsewhere.changes_password(PASSWORD, "another horse").await.unwrap();
        shop.me(elsewhere.token()).await.unwrap();
        shop.refreshes(&elsewhere.tokens.refresh_token).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn disabling_the_user_revokes_the_session() {
    revokes(async |shop, ann| {
        let user = shop.admin("root").await.updates(ann.id(), None, Some(true)).await.unwrap();
        assert_eq!(user.disabled, Some(true));
    })
    .await;
}

#[tokio::test]
async fn changing_the_role_revokes_the_session() {
    revokes(async |shop, ann| {
        shop.admin("root").await.updates(ann.id(), Some(Role::Admin), None).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn reusing_a_refresh_token_revokes_the_session() {
    revokes(async |shop, ann| {
        shop.refreshes(&ann.tokens.refresh_token).await.unwrap();
        shop.advance_clock(Duration::from_secs(11));
        shop.refreshes(&ann.tokens.refresh_token).await.unwrap_err();
    })
    .await;
}

#[tokio::test]
async fn another_process_that_polls_the_keys_gets_the_revocation() {
    let shop = TestAuth::start().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let mut gateway = TestProcess::default();
    let verifier = Verifier::new(gateway.process.clock.clone());
    let (sender, mut revoked) = broadcast::channel(16);
    let auth =
        LoadBalancer::start("auth", &format!("http://{}", shop.settings.listen_addr), &gateway.process)
            .unwrap();
    verifier_sync::spawn(&gateway.process, auth, verifier.clone(), sender);
    gateway.wait_ready().await;
    let kind = shoppee_kit::caller::TokenType::Access;
    let sid = verifier.verify(ann.token(), kind).unwrap().claims.sid;
    ann.logs_out().await;
    let event = tokio::time::timeout(Duration::from_secs(1), revoked.recv()).await;
    assert_eq!(event.expect("within a second").unwrap(), sid);
    assert!(verifier.verify(ann.token(), kind).is_err());
}

#[tokio::test]
async fn unknown_and_foreign_sessions_get_the_same_error() {
    let shop = TestAuth::start().await;
    let (ann, bob) = (shop.registers_and_signs_in("ann").await, shop.registers_and_signs_in("bob").await);
    let foreign = ann.sessions().await[0].id.clone();
    let mut errors = Vec::new();
    for id in [foreign.as_str(), "018c7a3e-0000-7000-8000-000000000000", "x", "", "' or 1=1"] {
        let request = bob.request(RevokeSessionRequest { id: id.to_owned() });
        let status = expect_error(shop.client.clone().revoke_session(request).await, NotFound, "NOT_FOUND");
        errors.push((status.message().to_owned(), status.details().to_vec()));
    }
    errors.dedup();
    assert_eq!(errors.len(), 1);
    shop.me(ann.token()).await.unwrap();
    // A session that has ended already is not listed either.
    let second = shop.signs_in("ann").await;
    ann.logs_out().await;
    let request = second.request(RevokeSessionRequest { id: foreign });
    expect_error(shop.client.clone().revoke_session(request).await, NotFound, "NOT_FOUND");
}

/// Returns the verifier state for a reader with this cursor.
async fn verifier_state(shop: &TestAuth, cursor: Option<&str>) -> GetJwksResponse {
    let request = GetJwksRequest { cursor: cursor.map(str::to_owned) };
    shop.client.clone().get_jwks(request).await.expect("answers").into_inner()
}

fn sids(state: &GetJwksResponse) -> Vec<&str> {
    state.ended_sessions.iter().map(|session| session.sid.as_str()).collect()
}

#[tokio::test]
async fn a_reader_gets_a_revocation_once_and_not_after_its_tokens_expire() {
    let shop = TestAuth::start().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let id = ann.sessions().await[0].id.clone();
    ann.logs_out().await;
    let first = verifier_state(&shop, None).await;
    assert_eq!((sids(&first), first.more), (vec![id.as_str()], false));
    assert!(verifier_state(&shop, Some(&first.cursor)).await.ended_sessions.is_empty());
    for invalid in ["", "x", "1/1:1:", "9223372036854775807/9:9:", &"9".repeat(60_000)] {
        assert_eq!(
            sids(&verifier_state(&shop, Some(invalid)).await),
            [&id],
            "an invalid cursor returns all: {invalid:.30}"
        );
    }
    shop.advance_clock(Duration::from_hours(24) + Duration::from_secs(6));
    assert!(verifier_state(&shop, None).await.ended_sessions.is_empty(), "its tokens have expired");
}

#[tokio::test]
async fn a_revocation_that_commits_late_is_not_missed() {
    let shop = TestAuth::start().await;
    let replica = shop.replica().await;
    let (ann, bob) = (shop.registers_and_signs_in("ann").await, shop.registers_and_signs_in("bob").await);
    let (mut ending, mut other) = (shop.connection().await, shop.connection().await);
    let mut stalled = ending.begin().await.unwrap();
    // A transaction that has been open for a minute: by the clock its end has long advanced.
    sqlx::query(
        "update auth.session set ended_at = clock_timestamp() - interval '1 minute' where user_id = $1",
    )
    .bind(ann.id())
    .execute(&mut *stalled)
    .await
    .unwrap();
    let cursor = verifier_state(&shop, None).await.cursor;
    // Later transactions commit first, and every reader advances past them.
    bob.logs_out().await;
    sqlx::query("update auth.account set role = role").execute(&mut other).await.unwrap();
    replica.rejects_within_a_second(bob.token()).await;
    let advanced = verifier_state(&shop, Some(&cursor)).await;
    assert_eq!(advanced.ended_sessions.len(), 1);
    replica.me(ann.token()).await.expect("is not revoked yet");

    stalled.commit().await.unwrap();
    replica.rejects_within_a_second(ann.token()).await;
    shop.rejects_within_a_second(ann.token()).await;
    let late = verifier_state(&shop, Some(&advanced.cursor)).await;
    assert_eq!(late.ended_sessions.len(), 1);
    assert!(verifier_state(&shop, Some(&late.cursor)).await.ended_sessions.is_empty(), "and once only");
}

#[tokio::test]
async fn a_process_is_not_ready_before_it_has_all_revocations() {
    const COUNT: usize = 120_000;
    let shop = TestAuth::start().await;
    let ann = shop.registers_and_signs_in("ann").await;
    sqlx::query(
        "insert into auth.session
             (id, user_id, user_agent, created_at, last_used_at, expires_at, access_expires_at, ended_at)
         select gen_random_uuid(), user_id, user_agent, created_at, last_used_at, expires_at,
                access_expires_at, now()
         from auth.session, generate_series(1, $1) as series (number)",
    )
    .bind(i32::try_from(COUNT).unwrap())
    .execute(&mut shop.connection().await)
    .await
    .unwrap();
    // The last revocation in the list, as it has the latest transaction.
    ann.logs_out().await;

    let mut gateway = TestProcess::default();
    let verifier = Verifier::new(gateway.process.clock.clone());
    let (sender, mut revoked) = broadcast::channel(2 * COUNT);
    let auth =
        LoadBalancer::start("auth", &format!("http://{}", shop.settings.listen_addr), &gateway.process)
            .unwrap();
    verifier_sync::spawn(&gateway.process, auth, verifier.clone(), sender);
    gateway.wait_ready().await;
    let outcome = verifier.verify(ann.token(), shoppee_kit::caller::TokenType::Access);
    assert_eq!(outcome.unwrap_err(), TokenError::Revoked);
    let mut count = 0;
    while revoked.try_recv().is_ok() {
        count += 1;
    }
    assert_eq!(count, COUNT + 1);
    assert_revoked(&shop.replica().await, &ann).await;
}

async fn assert_revoked(replica: &TestAuth, person: &Person) {
    expect_error(replica.me(person.token()).await, Unauthenticated, "SESSION_REVOKED");
}

#[tokio::test]
async fn a_sign_in_beyond_the_limit_revokes_the_least_recently_used_session() {
    let shop = TestAuth::start().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let mut conn = shop.connection().await;
    // 99 more, all used later than the first.
    sqlx::query(
        "insert into auth.session
             (id, user_id, user_agent, created_at, last_used_at, expires_at, access_expires_at)
         select gen_random_uuid(), user_id, user_agent, created_at, last_used_at + interval '1 s', expires_at,
                access_expires_at
         from auth.session, generate_series(1, 99)",
    )
    .execute(&mut conn)
    .await
    .unwrap();
    assert_eq!(ann.sessions().await.len(), 100);
    shop.advance_clock(Duration::from_mins(1));
    let newest = shop.signs_in("ann").await;
    assert_eq!(newest.sessions().await.len(), 100);
    expect_error(shop.me(ann.token()).await, Unauthenticated, "SESSION_REVOKED");
}

#[tokio::test]
async fn sessions_are_listed_page_by_page() {
    let shop = TestAuth::start().await;
    let ann = shop.registers_and_signs_in("ann").await;
    for _ in 0..4 {
        shop.signs_in("ann").await;
    }
    let all: Vec<String> = ann.sessions().await.into_iter().map(|session| session.id).collect();
    let list = async |limit, cursor| {
        ann.client.clone().list_sessions(ann.request(ListSessionsRequest { limit, cursor })).await
    };
    let (mut listed, mut cursor) = (Vec::new(), None);
    for expected in [2, 2, 1] {
        let page = list(Some(2), cursor).await.unwrap().into_inner();
        assert_eq!(page.items.len(), expected);
        listed.extend(page.items.into_iter().map(|session| session.id));
        cursor = page.next_cursor;
    }
    assert_eq!((listed, cursor), (all, None));
    for (limit, cursor, field) in
        [(Some(0), None, "limit"), (Some(101), None, "limit"), (None, Some("nonsense".to_owned()), "cursor")]
    {
        let status = list(limit, cursor).await.expect_err("is an error");
        assert_eq!(fields(&status), [field]);
    }
}
