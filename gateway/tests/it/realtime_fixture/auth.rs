//! A fake auth service: one key, sessions that the test revokes, tickets that are redeemed once.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

use axum::{Router, routing::post};
use http::Request;
use shoppee_proto::auth::v1::{
    EndedSession, GetJwksRequest, GetJwksResponse, Jwk, RedeemWsTicketRequest, SocketToken,
};
use tonic::{Response, Status, body::Body, server::Grpc};

use super::{bearer_claims, signed_token};

/// The public key of RFC 8037, appendix A.
const PUBLIC_KEY: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

pub fn routes(ended: &Arc<Mutex<Vec<EndedSession>>>) -> Router {
    let ended = ended.clone();
    let jwks = move |request: Request<axum::body::Body>| {
        let ended = ended.clone();
        async move {
            let method = tower::service_fn(move |_: tonic::Request<GetJwksRequest>| {
                let ended_sessions = ended.lock().expect("not poisoned").clone();
                async move {
                    let text = |text: &str| text.to_owned();
                    let key = Jwk {
                        kty: text("OKP"),
                        crv: text("Ed25519"),
                        alg: text("EdDSA"),
                        r#use: text("sig"),
                        kid: text("fixture"),
                        x: text(PUBLIC_KEY),
                    };
                    Ok(Response::new(GetJwksResponse {
                        keys: vec![key],
                        ended_sessions,
                        ..GetJwksResponse::default()
                    }))
                }
            });
            let codec = tonic_prost::ProstCodec::<GetJwksResponse, GetJwksRequest>::default();
            Grpc::new(codec).unary(method, request.map(Body::new)).await
        }
    };
    // Redeems each ticket once.
    let used = Arc::<Mutex<HashSet<String>>>::default();
    let redeem = move |request: Request<axum::body::Body>| {
        let used = used.clone();
        async move {
            let method = tower::service_fn(move |request: tonic::Request<RedeemWsTicketRequest>| {
                let mut claims = bearer_claims(&request);
                let is_new = used.lock().expect("not poisoned").insert(claims["jti"].to_string());
                claims["exp"] = claims["socket_exp"].take();
                let token = signed_token("ws-socket+jwt", &claims);
                async move {
                    let response = Response::new(SocketToken { token, ..SocketToken::default() });
                    if is_new { Ok(response) } else { Err(Status::unauthenticated("used")) }
                }
            });
            let codec = tonic_prost::ProstCodec::<SocketToken, RedeemWsTicketRequest>::default();
            Grpc::new(codec).unary(method, request.map(Body::new)).await
        }
    };
    Router::new()
        .route("/shoppee.auth.v1.AuthService/GetJwks", post(jwks))
        .route("/shoppee.auth.v1.AuthService/RedeemWsTicket", post(redeem))
}
