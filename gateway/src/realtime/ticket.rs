//! One-time tickets: a ticket lets a browser open one socket within 30 seconds. The auth service exchanges a ticket for a
//! token of the socket, and its database decides whether the ticket was used. A ticket used at one gateway is refused at
//! every other, with or without Redis. A ticket that cannot be exchanged opens nothing.

use shoppee_kit::caller::{Caller, TokenType, Verifier};
use shoppee_proto::auth::v1::RedeemWsTicketRequest;

use crate::{error::Problem, upstream::Upstream};

/// Redeems a verified ticket. Returns the caller on whose behalf the socket reads its events.
pub async fn redeem(upstream: &Upstream, verifier: &Verifier, ticket: &Caller) -> Result<Caller, Problem> {
    let socket = upstream.call(ticket, RedeemWsTicketRequest {}).await?;
    Ok(verifier.verify(&socket.token, TokenType::Socket)?)
}
