//! A response body whose unsent bytes are accounted.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::body::Body;
use http_body::{Frame, SizeHint};

use super::{
    activity::ActiveRequest,
    unsent::{Chunk, ConnectionAccount},
};

/// A response body whose bytes are accounted.
#[derive(Debug)]
pub struct AccountedBody {
    pub body: Body,
    pub account: Arc<ConnectionAccount>,
    /// The request, which ends when the body is dropped.
    pub _request: ActiveRequest,
}

impl http_body::Body for AccountedBody {
    type Data = Chunk;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Chunk>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        frame.map_ok(|frame| frame.map_data(|bytes| self.account.take(bytes)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
