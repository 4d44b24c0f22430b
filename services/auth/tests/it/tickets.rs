//! Tickets for sockets: valid once, for seconds, and only for a token that may read events.

use std::time::Duration;

use futures_util::future::join_all;
use shoppee_kit::caller::Claims;
use shoppee_proto::auth::v1::{CreateWsTicketRequest, RedeemWsTicketRequest, SocketToken, WsTicket};
use tonic::{
    Code::{PermissionDenied, Unauthenticated},
    Response, Status,
};

use crate::shop::{Person, TestAuth, expect_error, with};

async fn ticket(shop: &TestAuth, person: &Person) -> WsTicket {
    shop.client
        .clone()
        .create_ws_ticket(person.request(CreateWsTicketRequest {}))
        .await
        .expect("a ticket")
        .into_inner()
}

async fn redeem(shop: &TestAuth, ticket: &str) -> Result<SocketToken, Status> {
    let request = with(ticket, RedeemWsTicketRequest {});
    shop.client.clone().redeem_ws_ticket(request).await.map(Response::into_inner)
}

fn claims(token: &str) -> Claims {
    jsonwebtoken::dangerous::insecure_decode::<Claims>(token).expect("claims").claims
}

fn typ(token: &str) -> Option<String> {
    jsonwebtoken::decode_header(token).expect("a header").typ
}

#[tokio::test]
async fn a_ticket_is_exchanged_for_a_token_that_may_only_read_events() {
    let shop = TestAuth::start().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let ticket = ticket(&shop, &ann).await;
    assert_eq!((ticket.expires_in, typ(&ticket.ticket).as_deref()), (30, Some("ws-ticket+jwt")));
    let of_ticket = claims(&ticket.ticket);
    assert_eq!(of_ticket.exp - of_ticket.iat, 30);
    expect_error(shop.me(&ticket.ticket).await, PermissionDenied, "FORBIDDEN");

    let socket = redeem(&shop, &ticket.ticket).await.unwrap();
    assert_eq!(typ(&socket.token).as_deref(), Some("ws-socket+jwt"));
    let (of_socket, of_access) = (claims(&socket.token), claims(ann.token()));
    assert_eq!((of_socket.sid, of_socket.exp), (of_access.sid, of_access.exp), "it lives as long");
    expect_error(shop.me(&socket.token).await, PermissionDenied, "FORBIDDEN");
    for token in [&socket.token, ann.token()] {
        expect_error(redeem(&shop, token).await, PermissionDenied, "FORBIDDEN");
    }
    let another = shop.client.clone().create_ws_ticket(with(&socket.token, CreateWsTicketRequest {})).await;
    expect_error(another, PermissionDenied, "FORBIDDEN");
}

#[tokio::test]
async fn of_concurrent_exchanges_of_one_ticket_one_succeeds() {
    let shop = TestAuth::start().await;
    let replica = shop.replica().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let ticket = ticket(&shop, &ann).await.ticket;
    let outcomes = join_all((0..12).map(|number| redeem([&shop, &replica][number % 2], &ticket))).await;
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1);
    for outcome in outcomes.into_iter().filter(Result::is_err) {
        expect_error(outcome, Unauthenticated, "UNAUTHENTICATED");
    }
}

#[tokio::test]
async fn a_ticket_expires_after_thirty_seconds_and_with_its_session() {
    let shop = TestAuth::start().await;
    let ann = shop.registers_and_signs_in("ann").await;
    let late = ticket(&shop, &ann).await.ticket;
    shop.advance_clock(Duration::from_secs(30));
    expect_error(redeem(&shop, &late).await, Unauthenticated, "TOKEN_EXPIRED");
    let orphan = ticket(&shop, &ann).await.ticket;
    ann.logs_out().await;
    expect_error(redeem(&shop, &orphan).await, Unauthenticated, "SESSION_REVOKED");
}

#[tokio::test]
async fn a_ticket_expires_no_later_than_the_access_token() {
    let shop = TestAuth::start_with(|settings| settings.access_token_ttl = Duration::from_mins(5)).await;
    let ann = shop.registers_and_signs_in("ann").await;
    shop.advance_clock(Duration::from_secs(290));
    let ticket = ticket(&shop, &ann).await;
    assert!((9..=10).contains(&ticket.expires_in), "{}", ticket.expires_in);
    assert_eq!(claims(&redeem(&shop, &ticket.ticket).await.unwrap().token).exp, claims(ann.token()).exp);
}
