//! The gRPC baseline: an axum gateway whose only handler makes one gRPC call, and a tonic service whose only method returns
//! one message.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll},
};

use axum::{Router, extract::State, http, routing::get};
use clap::Args;
use shoppee_kit::client;
use shoppee_proto::product::v1::{GetProductRequest, Product, product_service_client::ProductServiceClient};
use tokio::net::TcpListener;
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::Service,
    server::{NamedService, UnaryService},
    transport::{Channel, Server},
};

#[derive(Debug, Args)]
pub struct ServiceOptions {
    #[arg(long)]
    listen: SocketAddr,
    /// The URL of the real product service
    #[arg(long)]
    product_url: String,
    /// The id of the product to return
    #[arg(long)]
    id: i64,
}

#[derive(Debug, Args)]
pub struct GatewayOptions {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    service_url: String,
}

/// A service that returns the same product for every request.
#[derive(Clone, Debug)]
struct BaselineService(Product);

impl UnaryService<GetProductRequest> for BaselineService {
    type Response = Product;
    type Future = Ready<Result<Response<Product>, Status>>;

    fn call(&mut self, _: Request<GetProductRequest>) -> Self::Future {
        ready(Ok(Response::new(self.0.clone())))
    }
}

impl NamedService for BaselineService {
    const NAME: &'static str = "shoppee.product.v1.ProductService";
}

impl Service<http::Request<Body>> for BaselineService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = self.clone();
        Box::pin(async move {
            Ok(tonic::server::Grpc::new(tonic_prost::ProstCodec::default()).unary(method, request).await)
        })
    }
}

pub async fn run_service(options: ServiceOptions) -> anyhow::Result<()> {
    let mut real = ProductServiceClient::new(client::channel(&options.product_url)?);
    let product = real.get_product(GetProductRequest { id: options.id }).await?.into_inner();
    Ok(Server::builder()
        .tcp_nodelay(true)
        .add_service(BaselineService(product))
        .serve(options.listen)
        .await?)
}

pub async fn run_gateway(options: GatewayOptions) -> anyhow::Result<()> {
    let service = ProductServiceClient::new(client::channel(&options.service_url)?);
    let listener = TcpListener::bind(options.listen).await?;
    axum::serve(
        axum::serve::ListenerExt::tap_io(listener, |stream| drop(stream.set_nodelay(true))),
        Router::new().route("/", get(get_product)).with_state(service),
    )
    .await?;
    Ok(())
}

async fn get_product(
    State(mut service): State<ProductServiceClient<Channel>>,
) -> Result<axum::Json<Product>, http::StatusCode> {
    let response = service.get_product(GetProductRequest { id: 1 }).await;
    response
        .map(|response| axum::Json(response.into_inner()))
        .map_err(|_| http::StatusCode::SERVICE_UNAVAILABLE)
}
