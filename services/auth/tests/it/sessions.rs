//! Every way a session ends shows within a second, on every replica and on REST's and the sockets' verifiers
//! alike: they ask what is asked here.

use std::time::Duration;

use shoppee_kit::{
    caller::{TokenError, Verifier},
    keys,
    pool::Pool,
    testing::TestProcess,
};
use shoppee_proto::auth::v1::{
    CreateWsTicketRequest, GetJwksRequest, GetJwksResponse, ListSessionsRequest, LogoutAllRequest,
    RevokeSessionRequest, Role,
};
use sqlx::Connection as _;
use tokio::sync::broadcast;
use tonic::Code::{NotFound, Unauthenticated};

use crate::shop::{PASSWORD, Person, Shop, fields, refused};

#[tokio::test]
async fn sessions_are_listed_newest_first() {
    let shop = Shop::open().await;
    let first = shop.registers_and_signs_in("ann").await;
    shop.registers_and_signs_in("bob").await;
    shop.time_passes(Duration::from_mins(1));
    let second = shop.signs_in("ann").await;
    shop.time_passes(Duration::from_mins(1));
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

/// Ends the session of `ann`'s in one way, and asserts that it is refused here and on another replica.
async fn ends<F: AsyncFnOnce(&Shop, &Person)>(how: F) {
    let shop = Shop::open().await;
    let replica = shop.replica().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let bob = shop.registers_and_signs_in("bob").await;
    replica.me(ann.token()).await.expect("is let in");

    how(&shop, &ann).await;

    refused(shop.me(ann.token()).await, Unauthenticated, "SESSION_REVOKED");
    replica.refuses_within_a_second(ann.token()).await;
    let outcome = replica.client.clone().create_ws_ticket(ann.asks(CreateWsTicketRequest {})).await;
    refused(outcome, Unauthenticated, "SESSION_REVOKED");
    refused(replica.refreshes(&ann.tokens.refresh_token).await, Unauthenticated, "SESSION_REVOKED");
    assert!(replica.me(bob.token()).await.is_ok(), "nobody else's");
    // A replica that starts only now knows it from its first moment.
    refused(shop.replica().await.me(ann.token()).await, Unauthenticated, "SESSION_REVOKED");
}

#[tokio::test]
async fn logging_out_ends_it() {
    ends(async |_, ann| ann.logs_out().await).await;
}

#[tokio::test]
async fn logging_out_everywhere_ends_it() {
    ends(async |shop, _| {
        let elsewhere = shop.signs_in("ann").await;
        shop.client.clone().logout_all(elsewhere.asks(LogoutAllRequest {})).await.unwrap();
        refused(shop.me(elsewhere.token()).await, Unauthenticated, "SESSION_REVOKED");
    })
    .await;
}

#[tokio::test]
async fn ending_it_from_another_device_ends_it() {
    ends(async |shop, ann| {
        let elsewhere = shop.signs_in("ann").await;
        let id = ann.sessions().await.into_iter().find(|session| session.current).unwrap().id;
        shop.client.clone().revoke_session(elsewhere.asks(RevokeSessionRequest { id })).await.unwrap();
        assert_eq!(elsewhere.sessions().await.len(), 1);
        shop.me(elsewhere.token()).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn changing_the_password_elsewhere_ends_it() {
    ends(async |shop, _| {
        let elsewhere = shop.signs_in("ann").await;
        elsewhere.changes_password(PASSWORD, "another horse").await.unwrap();
        shop.me(elsewhere.token()).await.unwrap();
        shop.refreshes(&elsewhere.tokens.refresh_token).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn disabling_the_user_ends_it() {
    ends(async |shop, ann| {
        let user = shop.admin("root").await.updates(ann.id(), None, Some(true)).await.unwrap();
        assert_eq!(user.disabled, Some(true));
    })
    .await;
}

#[tokio::test]
async fn changing_the_role_ends_it() {
    ends(async |shop, ann| {
        shop.admin("root").await.updates(ann.id(), Some(Role::Admin), None).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn using_a_refresh_token_twice_ends_it() {
    ends(async |shop, ann| {
        shop.refreshes(&ann.tokens.refresh_token).await.unwrap();
        shop.time_passes(Duration::from_secs(11));
        shop.refreshes(&ann.tokens.refresh_token).await.unwrap_err();
    })
    .await;
}

#[tokio::test]
async fn another_process_that_follows_the_keys_learns_of_it() {
    let shop = Shop::open().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let mut gateway = TestProcess::default();
    let verifier = Verifier::new(gateway.process.clock.clone());
    let (ended, mut told) = broadcast::channel(16);
    let auth =
        Pool::start("auth", &format!("http://{}", shop.settings.listen_addr), &gateway.process).unwrap();
    keys::follow(&gateway.process, auth, verifier.clone(), ended);
    gateway.serves().await;
    let kind = shoppee_kit::caller::Kind::Access;
    let sid = verifier.verify(ann.token(), kind).unwrap().claims.sid;
    ann.logs_out().await;
    let heard = tokio::time::timeout(Duration::from_secs(1), told.recv()).await;
    assert_eq!(heard.expect("within a second").unwrap(), sid);
    assert!(verifier.verify(ann.token(), kind).is_err());
}

#[tokio::test]
async fn unknown_and_foreign_sessions_look_the_same() {
    let shop = Shop::open().await;
    let (ann, bob) = (shop.registers_and_signs_in("ann").await, shop.registers_and_signs_in("bob").await);
    let foreign = ann.sessions().await[0].id.clone();
    let mut told = Vec::new();
    for id in [foreign.as_str(), "018c7a3e-0000-7000-8000-000000000000", "x", "", "' or 1=1"] {
        let request = bob.asks(RevokeSessionRequest { id: id.to_owned() });
        let status = refused(shop.client.clone().revoke_session(request).await, NotFound, "NOT_FOUND");
        told.push((status.message().to_owned(), status.details().to_vec()));
    }
    told.dedup();
    assert_eq!(told.len(), 1);
    shop.me(ann.token()).await.unwrap();
    // One that has ended already is unknown too.
    let second = shop.signs_in("ann").await;
    ann.logs_out().await;
    let request = second.asks(RevokeSessionRequest { id: foreign });
    refused(shop.client.clone().revoke_session(request).await, NotFound, "NOT_FOUND");
}

/// Returns the answer to a reader with this cursor.
async fn list(shop: &Shop, cursor: Option<&str>) -> GetJwksResponse {
    let request = GetJwksRequest { cursor: cursor.map(str::to_owned) };
    shop.client.clone().get_jwks(request).await.expect("answers").into_inner()
}

fn sids(answer: &GetJwksResponse) -> Vec<&str> {
    answer.ended_sessions.iter().map(|ended| ended.sid.as_str()).collect()
}

#[tokio::test]
async fn a_reader_is_told_of_an_end_once_and_not_after_its_tokens_have_expired() {
    let shop = Shop::open().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let id = ann.sessions().await[0].id.clone();
    ann.logs_out().await;
    let first = list(&shop, None).await;
    assert_eq!((sids(&first), first.more), (vec![id.as_str()], false));
    assert!(list(&shop, Some(&first.cursor)).await.ended_sessions.is_empty());
    for odd in ["", "x", "1/1:1:", "9223372036854775807/9:9:", &"9".repeat(60_000)] {
        assert_eq!(sids(&list(&shop, Some(odd)).await), [&id], "an unknown cursor means all: {odd:.30}");
    }
    shop.time_passes(Duration::from_hours(24) + Duration::from_secs(6));
    assert!(list(&shop, None).await.ended_sessions.is_empty(), "its tokens have expired");
}

#[tokio::test]
async fn an_end_is_told_that_commits_long_after_the_reader_has_passed() {
    let shop = Shop::open().await;
    let replica = shop.replica().await;
    let (ann, bob) = (shop.registers_and_signs_in("ann").await, shop.registers_and_signs_in("bob").await);
    let (mut ending, mut other) = (shop.connection().await, shop.connection().await);
    let mut stalled = ending.begin().await.unwrap();
    // As if the transaction had been open for a minute: by the clock its end is long past.
    sqlx::query(
        "update auth.session set ended_at = clock_timestamp() - interval '1 minute' where user_id = $1",
    )
    .bind(ann.id())
    .execute(&mut *stalled)
    .await
    .unwrap();
    let cursor = list(&shop, None).await.cursor;
    // Later transactions commit meanwhile, and every reader passes them.
    bob.logs_out().await;
    sqlx::query("update auth.account set role = role").execute(&mut other).await.unwrap();
    replica.refuses_within_a_second(bob.token()).await;
    let passed = list(&shop, Some(&cursor)).await;
    assert_eq!(passed.ended_sessions.len(), 1);
    replica.me(ann.token()).await.expect("has not ended yet");

    stalled.commit().await.unwrap();
    replica.refuses_within_a_second(ann.token()).await;
    shop.refuses_within_a_second(ann.token()).await;
    let late = list(&shop, Some(&passed.cursor)).await;
    assert_eq!(late.ended_sessions.len(), 1);
    assert!(list(&shop, Some(&late.cursor)).await.ended_sessions.is_empty(), "and once only");
}

#[tokio::test]
async fn a_process_is_not_ready_before_it_knows_all_of_very_many_ends() {
    const COUNT: usize = 120_000;
    let shop = Shop::open().await;
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
    // The last that a reader is told of: of the latest transaction.
    ann.logs_out().await;

    let mut gateway = TestProcess::default();
    let verifier = Verifier::new(gateway.process.clock.clone());
    let (ended, mut told) = broadcast::channel(2 * COUNT);
    let auth =
        Pool::start("auth", &format!("http://{}", shop.settings.listen_addr), &gateway.process).unwrap();
    keys::follow(&gateway.process, auth, verifier.clone(), ended);
    gateway.serves().await;
    let refused = verifier.verify(ann.token(), shoppee_kit::caller::Kind::Access);
    assert_eq!(refused.unwrap_err(), TokenError::Revoked);
    let mut count = 0;
    while told.try_recv().is_ok() {
        count += 1;
    }
    assert_eq!(count, COUNT + 1);
    refused_by(&shop.replica().await, &ann).await;
}

async fn refused_by(replica: &Shop, person: &Person) {
    refused(replica.me(person.token()).await, Unauthenticated, "SESSION_REVOKED");
}

#[tokio::test]
async fn one_sign_in_too_many_ends_the_session_unused_for_longest() {
    let shop = Shop::open().await;
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
    shop.time_passes(Duration::from_mins(1));
    let newest = shop.signs_in("ann").await;
    assert_eq!(newest.sessions().await.len(), 100);
    refused(shop.me(ann.token()).await, Unauthenticated, "SESSION_REVOKED");
}

#[tokio::test]
async fn sessions_are_listed_page_by_page() {
    let shop = Shop::open().await;
    let ann = shop.registers_and_signs_in("ann").await;
    for _ in 0..4 {
        shop.signs_in("ann").await;
    }
    let all: Vec<String> = ann.sessions().await.into_iter().map(|session| session.id).collect();
    let list = async |limit, cursor| {
        ann.client.clone().list_sessions(ann.asks(ListSessionsRequest { limit, cursor })).await
    };
    let (mut found, mut cursor) = (Vec::new(), None);
    for expected in [2, 2, 1] {
        let page = list(Some(2), cursor).await.unwrap().into_inner();
        assert_eq!(page.items.len(), expected);
        found.extend(page.items.into_iter().map(|session| session.id));
        cursor = page.next_cursor;
    }
    assert_eq!((found, cursor), (all, None));
    for (limit, cursor, field) in
        [(Some(0), None, "limit"), (Some(101), None, "limit"), (None, Some("nonsense".to_owned()), "cursor")]
    {
        let status = list(limit, cursor).await.expect_err("refused");
        assert_eq!(fields(&status), [field]);
    }
}
