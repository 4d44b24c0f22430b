//! Tests of health and reflection of the gRPC server.

use shoppee_kit::client;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::test_shop::TestShop;

#[tokio::test(flavor = "multi_thread")]
async fn health_is_served_for_the_server_and_each_service() {
    let shop = TestShop::start().await;
    let channel = client::channel(&shop.grpc_url()).expect("a URL");
    let mut health = HealthClient::new(channel);
    for service in ["", "shoppee.product.v1.ProductService", "shoppee.product.v1.StockService"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = health.check(request).await.expect("is known").into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    let request = HealthCheckRequest { service: "shoppee.order.v1.OrderService".to_owned() };
    assert_eq!(health.check(request).await.expect_err("is another's").code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_lists_all_services() {
    let shop = TestShop::start().await;
    let channel = client::channel(&shop.grpc_url()).expect("a URL");
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let requests = futures_util::stream::iter([request]);
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(requests)
        .await
        .expect("reflection is on")
        .into_inner();
    let answer = answers.message().await.expect("an answer").expect("an answer").message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else {
        panic!("no list: {answer:?}");
    };
    let mut listed: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
    listed.sort_unstable();
    assert_eq!(
        listed,
        [
            "grpc.health.v1.Health",
            "shoppee.audit.v1.AuditService",
            "shoppee.product.v1.ChangeFeedService",
            "shoppee.product.v1.HoldAuditService",
            "shoppee.product.v1.ProductCacheService",
            "shoppee.product.v1.ProductService",
            "shoppee.product.v1.StatusService",
            "shoppee.product.v1.StockService",
        ]
    );
}
