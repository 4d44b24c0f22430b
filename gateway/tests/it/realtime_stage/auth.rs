//! A stand-in for the auth service: one key, the sessions that the test ends, tickets that are good once.

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

use super::{presented, signed};

/// The public key of RFC 8037, appendix A.
const PUBLIC: &str = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo";

pub fn routes(ended: &Arc<Mutex<Vec<EndedSession>>>) -> Router {
    let ended = ended.clone();
    let jwks = move |request: Request<axum::body::Body>| {
        let ended = ended.clone();
        async move {
            let method = tower::service_fn(move |_: tonic::Request<GetJwksRequest>| {
                let ended_sessions = ended.lock().expect("sound").clone();
                async move {
                    let word = |word: &str| word.to_owned();
                    let key = Jwk {
                        kty: word("OKP"),
                        crv: word("Ed25519"),
                        alg: word("EdDSA"),
                        r#use: word("sig"),
                        kid: word("stage"),
                        x: word(PUBLIC),
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
    // Exchanges each ticket once.
    let used = Arc::<Mutex<HashSet<String>>>::default();
    let redeem = move |request: Request<axum::body::Body>| {
        let used = used.clone();
        async move {
            let method = tower::service_fn(move |request: tonic::Request<RedeemWsTicketRequest>| {
                let mut claims = presented(&request);
                let is_new = used.lock().expect("sound").insert(claims["jti"].to_string());
                claims["exp"] = claims["socket_exp"].take();
                let token = signed("ws-socket+jwt", &claims);
                async move {
                    let answer = Response::new(SocketToken { token, ..SocketToken::default() });
                    if is_new { Ok(answer) } else { Err(Status::unauthenticated("used")) }
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
