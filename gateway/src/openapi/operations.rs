//! The table of operations: the part of the document that is not in the protobuf options and messages. A new route needs
//! a row here.

use Code::{
    AccountDisabled, CartEmpty, CategoryInUse, EmailTaken, IdempotencyKeyReused, InvalidCredentials,
    InvalidTransition, OrderExpired, OutOfStock, PaymentDeclined, PriceChanged, ProductUnavailable,
    RequestInProgress, SkuTaken, SlugTaken, TooManyAttempts, TooManyUnpaidOrders, TooManyUnpaidUnits,
    UsernameTaken, ValidationFailed, VersionMismatch,
};

use crate::error::Code;

#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// `Service.Method`. Its annotation has method and path, its messages the bodies.
    pub rpc: &'static str,
    /// The index among the method's routes.
    pub binding: usize,
    /// The operation's id, if it is not the method's name.
    id: Option<&'static str>,
    pub summary: &'static str,
    pub description: &'static str,
    /// The status of success.
    pub status: u16,
    /// The errors beside those of every operation of its kind.
    pub errors: &'static [Code],
    pub is_body_optional: bool,
}

const fn op(rpc: &'static str, summary: &'static str) -> Operation {
    let (description, errors) = ("", &[] as &[Code]);
    Operation {
        rpc,
        binding: 0,
        id: None,
        summary,
        description,
        status: 200,
        errors,
        is_body_optional: false,
    }
}

impl Operation {
    const fn description(self, description: &'static str) -> Self {
        Self { description, ..self }
    }

    const fn status(self, status: u16) -> Self {
        Self { status, ..self }
    }

    const fn errors(self, errors: &'static [Code]) -> Self {
        Self { errors, ..self }
    }

    const fn optional_body(self) -> Self {
        Self { is_body_optional: true, ..self }
    }

    const fn second_route(self, id: &'static str) -> Self {
        Self { binding: 1, id: Some(id), ..self }
    }

    /// Returns the `operationId`: the name of the gRPC method in lower camel case, so that both sides call an
    /// operation the same.
    pub fn id(&self) -> String {
        if let Some(id) = self.id {
            return id.to_owned();
        }
        let method = self.rpc.rsplit('.').next().unwrap_or_default();
        let (first, rest) = method.split_at(method.len().min(1));
        first.to_ascii_lowercase() + rest
    }
}

pub const OPERATIONS: &[Operation] = &[
    op("AuthService.Register", "Open an account")
        .description(
            "A customer's. Signing in is a call of its own. A repeat with the same `Idempotency-Key`, username, \
             e-mail and password gets the same answer; with another password it counts as a try to sign in.",
        )
        .status(201)
        .errors(&[UsernameTaken, EmailTaken, ValidationFailed, IdempotencyKeyReused, TooManyAttempts]),
    op("AuthService.Login", "Sign in")
        .description(
            "Begins a session. An account can be tried ten times a minute by all devices together that never \
             signed in to it, and as often by each device that did: it is known by the cookie \
             `shoppee_device`, or by the `device-token` of its last answer, until the password changes. An \
             unknown name and a wrong password look the same.",
        )
        .errors(&[InvalidCredentials, AccountDisabled, ValidationFailed, TooManyAttempts]),
    op("AuthService.Refresh", "Get new tokens")
        .description(
            "For a refresh token that has not been used. One that has ends its whole session: somebody has \
             a copy. Where the answer was lost, the same token may be sent once more within 10 s and gets \
             the same successor.",
        )
        .errors(&[Code::Unauthenticated, Code::TokenExpired, Code::SessionRevoked]),
    op("AuthService.Logout", "Sign out")
        .description("Ends this session: its tokens and its sockets, on every gateway within a second.")
        .status(204),
    op("AuthService.LogoutAll", "Sign out everywhere")
        .description("Ends every session of the caller, this one too.")
        .status(204),
    op("AuthService.GetUserInfo", "Show my account").description("The account that the access token belongs to."),
    op("AuthService.ChangePassword", "Change the password")
        .description("All other sessions end.")
        .status(204)
        .errors(&[InvalidCredentials, ValidationFailed, TooManyAttempts]),
    op("AuthService.ListSessions", "List my sessions")
        .description(
            "Those that are open, newest first. There are at most 100: one more sign-in ends the session that was \
             not used for the longest time.",
        ),
    op("AuthService.RevokeSession", "End one of my sessions")
        .description("Its tokens and its sockets end within a second, on every gateway.")
        .status(204),
    op("AuthService.CreateWsTicket", "Get a ticket for a socket")
        .description("What a browser opens `GET /ws` with, as it cannot set headers there. Good once, for 30 s.")
        .status(201),
    op("AuthService.ListUsers", "List users").description("Newest first."),
    op("AuthService.GetUser", "Show a user")
        .description("The account with its role, and whether it is disabled."),
    op("AuthService.UpdateUser", "Change a user's role, or disable the account")
        .description("Either change ends the user's sessions within a second. The last admin stays one: 422.")
        .errors(&[ValidationFailed]),
    op("AuthService.CreateServiceAccount", "Create a service account")
        .description(
            "An identity of a program, with the scopes that it needs. The answer has its `client_secret`, which is shown \
             once and not stored: a repeat with the same `Idempotency-Key` gets the same secret for 24 h. The program gets \
             tokens with `POST /oauth/token`.",
        )
        .status(201)
        .errors(&[ValidationFailed, RequestInProgress, IdempotencyKeyReused]),
    op("AuthService.ListServiceAccounts", "List service accounts")
        .description("Newest first, with the revoked ones."),
    op("AuthService.GetServiceAccount", "Show a service account")
        .description("Its scopes, its last use and its end. The secret is not shown again."),
    op("AuthService.RotateServiceAccount", "Rotate the secret of a service account")
        .description(
            "The answer has the new `client_secret`. The previous one stays valid for 7 days or until the next rotation; \
             two rotations in a row end a secret that leaked. A revoked account is 404.",
        )
        .errors(&[RequestInProgress, IdempotencyKeyReused]),
    op("AuthService.RevokeServiceAccount", "Revoke a service account")
        .description("Its secrets and its tokens end within a second, for ever. Again is no error.")
        .status(204),
    op("AuditService.ListAuditRecords", "List audit records")
        .description(
            "Each grant, and each act of admins and services, of all parts of the shop, newest first. `actor` and `target` \
             are a kind and an id, as in `admin:17` and `product:42`. A page with two or more of the filters `actor`, \
             `action` and `target` may have fewer records than `limit`, or none, and still have a `next_cursor`.",
        ),
    op("ProductService.ListProducts", "List the catalogue")
        .description("Products that are sold. Ties are ordered by id."),
    op("ProductService.SearchProducts", "Search the catalogue").description(
        "The best first: an exact SKU, in any case and without its separators too, an exact name, then products \
         with all the words, then with some; the newest first among equals. In every script, without regard to \
         case and accents. Typing slips are forgiven (one in a word of four letters or more, two from eight), and \
         the last word may be unfinished. `total` counts all pages; so does `facets`, which is answered with \
         `facets=true`. A change is found within a second.",
    ),
    op("ProductService.GetProduct", "Show a product")
        .description("An archived one only to an admin. Keep the `ETag`, and ask again with `If-None-Match`."),
    op("ProductService.CreateProduct", "Add a product")
        .description("It is sold from then on. Its SKU must be new.")
        .status(201)
        .errors(&[SkuTaken, ValidationFailed, RequestInProgress, IdempotencyKeyReused]),
    op("ProductService.UpdateProduct", "Change a product")
        .description(
            "Changes the fields that are given. `null` empties `description` and `attributes`, and takes \
             `category_id` and `image_url` away.",
        )
        .errors(&[SkuTaken, VersionMismatch, ValidationFailed, RequestInProgress, IdempotencyKeyReused]),
    op("ProductService.ArchiveProduct", "Take a product out of the shop")
        .description(
            "It stays in the orders that have it. Again is no error; `PATCH` with `status` brings it \
                back.",
        )
        .status(204)
        .errors(&[VersionMismatch]),
    op("ProductService.AdjustStock", "Correct a stock")
        .description("Adds `delta` to what can be bought; never below zero.")
        .errors(&[OutOfStock, ValidationFailed, RequestInProgress, IdempotencyKeyReused]),
    op("ProductService.BatchUpdateProducts", "Change many products")
        .description(
            "Up to 10 000 rows, in a body of up to 8 MiB. A row that breaks a rule, or names a product a \
             second time, fails alone; with `on_error: \"abort\"`, one that fails means that nothing is \
             changed and the others are `skipped`. Under an `Idempotency-Key`, rows that are `unavailable` are \
             done by sending the same batch again, and no other row is done twice.",
        )
        .errors(&[ValidationFailed, RequestInProgress, IdempotencyKeyReused]),
    op("ProductService.ListCategories", "List the categories")
        .description("By slug, with `limit` and `cursor`: their number is not bounded."),
    op("ProductService.CreateCategory", "Add a category")
        .description("Its slug must be new. Without `parent_id` it is a root.")
        .status(201)
        .errors(&[SlugTaken, ValidationFailed, RequestInProgress, IdempotencyKeyReused]),
    op("ProductService.UpdateCategory", "Change a category")
        .description("Changes the fields that are given; `parent_id: null` makes it a root.")
        .errors(&[SlugTaken, ValidationFailed, RequestInProgress, IdempotencyKeyReused]),
    op("ProductService.DeleteCategory", "Remove a category")
        .description("Not while products, archived ones too, or other categories are in it.")
        .status(204)
        .errors(&[CategoryInUse]),
    op("OrderService.GetCart", "Show my cart").description("With the prices of this moment."),
    op("OrderService.ClearCart", "Empty my cart").description("An empty cart is no error.").status(204),
    op("OrderService.AddCartItem", "Put a product into my cart")
        .description("Adds to its line where it is in the cart already. A cart has 100 lines at most.")
        .errors(&[ProductUnavailable, RequestInProgress, ValidationFailed, IdempotencyKeyReused]),
    op("OrderService.SetCartItem", "Set how many of a product are in my cart")
        .description("0 removes the line.")
        .errors(&[ProductUnavailable, ValidationFailed, RequestInProgress]),
    op("OrderService.RemoveCartItem", "Take a product out of my cart")
        .description("One that is not in it is no error.")
        .errors(&[RequestInProgress]),
    op("OrderService.CreateOrder", "Place an order")
        .description(
            "Of `items`, at most 100 different products; without them, of the cart, which is empty \
             afterwards. The stock is held until the order is paid or its time runs out (`expires_at`). \
             With `expected_total`, an order that would cost something else is refused. What a user's unpaid \
             orders hold is bounded, in all and as a share of one product; one unit is always allowed.",
        )
        .status(201)
        .errors(&[
            CartEmpty,
            ProductUnavailable,
            OutOfStock,
            PriceChanged,
            TooManyUnpaidOrders,
            TooManyUnpaidUnits,
            RequestInProgress,
            ValidationFailed,
            IdempotencyKeyReused,
        ]),
    op("OrderService.ListOrders", "List my orders").description("Newest first."),
    op("OrderService.GetOrder", "Show an order").description("My own; to an admin, any."),
    op("OrderService.ListOrderEvents", "Show an order's history")
        .description(
            "Every step it took, oldest first. The list is whole, with at most four entries, and `next_cursor` is \
             null. My own; to an admin, any.",
        ),
    op("OrderService.PayOrder", "Pay my order")
        .description("`pending` → `paid`. Only its owner pays an order.")
        .errors(&[
            PaymentDeclined,
            InvalidTransition,
            OrderExpired,
            RequestInProgress,
            ValidationFailed,
            IdempotencyKeyReused,
        ]),
    op("OrderService.CancelOrder", "Cancel an order")
        .description(
            "The owner while it is `pending`; an admin while it is `pending` or `paid`, and then the \
             money goes back: `payment.status` is `refund_pending` until the provider has confirmed it. \
             An order that was cancelled with the same reason is answered as it is.",
        )
        .optional_body()
        .errors(&[InvalidTransition, OrderExpired, RequestInProgress, ValidationFailed, IdempotencyKeyReused]),
    op("OrderService.ShipOrder", "Ship an order")
        .description("`paid` → `shipped`. An order that was shipped so already is answered as it is.")
        .errors(&[InvalidTransition, OrderExpired, RequestInProgress, ValidationFailed, IdempotencyKeyReused]),
    op("OrderService.CompleteOrder", "Say that an order has arrived")
        .description("`shipped` → `completed`. My own; an admin, any. A completed order is answered as it is.")
        .errors(&[InvalidTransition, OrderExpired, RequestInProgress, IdempotencyKeyReused]),
    op("OrderService.ListOrders", "List the orders of all users")
        .description("Or of one of them. Newest first.")
        .second_route("listAllOrders"),
];

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    /// The field numbers in descriptor.proto that form the paths of comments.
    const SERVICES: i32 = 6;
    const METHODS: i32 = 2;

    /// Returns the comment of each method, by `Service.Method`.
    fn comments() -> HashMap<String, String> {
        let mut comments = HashMap::new();
        for file in FileDescriptorSet::decode(shoppee_proto::FILE_DESCRIPTOR_SET).unwrap().file {
            let places = file.source_code_info.unwrap_or_default().location;
            for (at, service) in (0..).zip(&file.service) {
                for (index, method) in (0..).zip(&service.method) {
                    let place = places.iter().find(|place| place.path == [SERVICES, at, METHODS, index]);
                    let comment = place.map(|place| place.leading_comments().replace('\n', ""));
                    let name = format!("{}.{}", service.name(), method.name());
                    comments.insert(name, comment.unwrap_or_default());
                }
            }
        }
        comments
    }

    #[test]
    fn rest_and_grpc_refuse_for_the_same_reasons() {
        let comments = comments();
        for operation in OPERATIONS {
            let rpc = operation.rpc;
            let (_, stated) = comments[rpc].split_once("Reasons: ").expect(rpc);
            let (reasons, _) = stated.split_once(" Repeat: ").expect(rpc);
            // The status codes are in parentheses. In REST, `not_found` follows from an id in the path.
            let words =
                reasons.split(['(', ')']).step_by(2).flat_map(|part| part.split([' ', ',', ';', '.']));
            let documented: HashSet<Code> =
                words.filter_map(Code::from_reason).filter(|code| *code != Code::NotFound).collect();
            assert_eq!(documented, operation.errors.iter().copied().collect(), "{rpc}");
        }
    }
}
