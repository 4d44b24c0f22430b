//! A consumer of the events of all users.

use std::sync::Arc;

use secrecy::SecretString;
use shoppee_kit::client;
use shoppee_proto::{
    auth::v1::{
        CreateServiceAccountRequest, IssueServiceTokenRequest, auth_service_client::AuthServiceClient,
    },
    order::v1::{
        OrderEvent, OrderStatus, WatchEventsRequest, WatchEventsResponse,
        order_service_client::OrderServiceClient,
    },
};
use tokio::time::timeout;
use tonic::{Request, Status, Streaming, transport::Channel};

use super::{ORDER_SECRET, Person, REQUEST_TIMEOUT, TestShop};

/// A service, or a person, that follows the events.
#[derive(Clone)]
pub struct Consumer {
    order: OrderServiceClient<Channel>,
    token: Arc<SecretString>,
}

impl TestShop {
    /// Signs in as a service with the scope `events:watch`.
    pub async fn consumer(&self) -> Consumer {
        self.service("events:watch").await
    }

    /// Signs in as a service with a scope.
    pub async fn service(&self, scope: &str) -> Consumer {
        let mut auth = AuthServiceClient::new(self.auth.clone());
        let request = self.admin().await.request(CreateServiceAccountRequest {
            name: "warehouse".to_owned(),
            scopes: vec![scope.to_owned()],
            ..CreateServiceAccountRequest::default()
        });
        let account = auth.create_service_account(request).await.expect("an account").into_inner();
        self.sign_in_as_client(account.id, account.client_secret.expect("a secret")).await
    }

    /// Signs in as the order service.
    pub async fn order_service(&self) -> Consumer {
        self.sign_in_as_client("order".to_owned(), ORDER_SECRET.to_owned()).await
    }

    async fn sign_in_as_client(&self, client_id: String, client_secret: String) -> Consumer {
        let mut auth = AuthServiceClient::new(self.auth.clone());
        let request =
            IssueServiceTokenRequest { client_id, client_secret, ..IssueServiceTokenRequest::default() };
        let token = auth.issue_service_token(request).await.expect("a token").into_inner().access_token;
        Consumer {
            order: OrderServiceClient::new(self.order.clone()),
            token: Arc::new(SecretString::from(token)),
        }
    }

    pub fn product_channel(&self) -> Channel {
        self.product.clone()
    }

    /// Returns the gRPC URL of the order service.
    pub fn order_url(&self) -> String {
        format!("http://{}", self.order_settings.listen_addr)
    }

    /// Ends all sessions of a person.
    pub async fn signs_out(&self, person: &Person) {
        let request = person.request(shoppee_proto::auth::v1::LogoutAllRequest {});
        AuthServiceClient::new(self.auth.clone()).logout_all(request).await.expect("signs out");
    }
}

impl Person {
    pub fn as_consumer(&self) -> Consumer {
        Consumer { order: self.order.clone(), token: self.token.clone() }
    }
}

impl Consumer {
    /// Returns the same consumer, calling another replica.
    pub fn at(&self, order: &Channel) -> Self {
        Self { order: OrderServiceClient::new(order.clone()), ..self.clone() }
    }

    pub fn request<T>(&self, message: T) -> Request<T> {
        client::request(message, Some(&self.token), REQUEST_TIMEOUT)
    }

    pub async fn watches_with(&self, request: WatchEventsRequest) -> Result<Watch, Status> {
        let messages = self.order.clone().watch_events(self.request(request)).await?.into_inner();
        Ok(Watch { messages, cursor: String::new() })
    }

    /// Follows the events after a cursor.
    pub async fn watches(&self, cursor: &str) -> Watch {
        let request = WatchEventsRequest { cursor: cursor.to_owned(), ..WatchEventsRequest::default() };
        self.watches_with(request).await.expect("watches")
    }

    /// Follows the events that come from now on.
    pub async fn watches_from_now(&self) -> Watch {
        let request = WatchEventsRequest { from_now: true, ..WatchEventsRequest::default() };
        let mut watch = self.watches_with(request).await.expect("watches");
        assert_eq!(watch.message().await.event, None, "the first message only has the position");
        watch
    }

    /// Follows the events with a status.
    pub async fn watches_status(&self, status: OrderStatus) -> Watch {
        let request = WatchEventsRequest { statuses: vec![status.into()], ..WatchEventsRequest::default() };
        self.watches_with(request).await.expect("watches")
    }
}

/// An open stream.
pub struct Watch {
    messages: Streaming<WatchEventsResponse>,
    /// The cursor of the last message.
    pub cursor: String,
}

impl Watch {
    /// Waits for the next message.
    pub async fn message(&mut self) -> WatchEventsResponse {
        self.try_message().await.expect("a message")
    }

    /// Waits for the next message, or the end of the stream.
    pub async fn try_message(&mut self) -> Result<WatchEventsResponse, Status> {
        let message = timeout(REQUEST_TIMEOUT, self.messages.message()).await.expect("in time")?;
        let message = message.ok_or_else(|| Status::ok("the end"))?;
        self.cursor.clone_from(&message.cursor);
        Ok(message)
    }

    /// Waits for the next event.
    pub async fn event(&mut self) -> OrderEvent {
        loop {
            if let Some(event) = self.message().await.event {
                return event;
            }
        }
    }

    pub async fn events(&mut self, count: usize) -> Vec<OrderEvent> {
        let mut events = Vec::with_capacity(count);
        while events.len() < count {
            events.push(self.event().await);
        }
        events
    }

    /// Waits for the end of the stream.
    pub async fn end(&mut self) -> Status {
        loop {
            if let Err(status) = self.try_message().await {
                return status;
            }
        }
    }
}
