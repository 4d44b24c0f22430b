//! The table of operations: what the document says of each route beyond what the contract's annotations and
//! messages say already. A route that is added to the contract is added here.

use Code::{
    AccountDisabled, CartEmpty, CategoryInUse, EmailTaken, IdempotencyKeyReused, InvalidCredentials,
    InvalidTransition, OrderExpired, OutOfStock, PaymentDeclined, PriceChanged, ProductUnavailable,
    RequestInProgress, SkuTaken, SlugTaken, TooManyAttempts, TooManyUnpaidOrders, TooManyUnpaidUnits,
    UsernameTaken, ValidationFailed, VersionMismatch,
};
use Who::{Admin, Anybody, Nobody, User};

use crate::error::Code;

/// Who may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Open; a token makes no difference.
    Nobody,
    /// Open; whoever signs in may see more.
    Anybody,
    User,
    Admin,
}

#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// `Service.Method`: the annotation says method and path, its messages the bodies.
    pub rpc: &'static str,
    /// Which of the method's routes it is.
    pub binding: usize,
    /// The operation's id where it is not the method's name.
    id: Option<&'static str>,
    pub who: Who,
    pub summary: &'static str,
    pub about: &'static str,
    /// Of success.
    pub status: u16,
    /// What it may be refused with, beside what every operation of its kind may.
    pub codes: &'static [Code],
    /// Whether the body may be left out.
    pub body_may_be_absent: bool,
}

const fn op(rpc: &'static str, who: Who, summary: &'static str) -> Operation {
    let (about, codes) = ("", &[] as &[Code]);
    Operation {
        rpc,
        binding: 0,
        id: None,
        who,
        summary,
        about,
        status: 200,
        codes,
        body_may_be_absent: false,
    }
}

impl Operation {
    const fn about(self, about: &'static str) -> Self {
        Self { about, ..self }
    }

    const fn answers(self, status: u16) -> Self {
        Self { status, ..self }
    }

    const fn or(self, codes: &'static [Code]) -> Self {
        Self { codes, ..self }
    }

    const fn without_body(self) -> Self {
        Self { body_may_be_absent: true, ..self }
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
    op("AuthService.Register", Nobody, "Open an account")
        .about(
            "A customer's. Signing in is a call of its own. A repeat with the same `Idempotency-Key`, username, \
             e-mail and password gets the same answer; with another password it counts as a try to sign in.",
        )
        .answers(201)
        .or(&[UsernameTaken, EmailTaken, ValidationFailed, IdempotencyKeyReused, TooManyAttempts]),
    op("AuthService.Login", Nobody, "Sign in")
        .about(
            "Begins a session. An account can be tried ten times a minute by all devices together that never \
             signed in to it, and as often by each device that did: it is known by the cookie \
             `shoppee_device`, or by the `device-token` of its last answer, until the password changes. An \
             unknown name and a wrong password look the same.",
        )
        .or(&[InvalidCredentials, AccountDisabled, ValidationFailed, TooManyAttempts]),
    op("AuthService.Refresh", Nobody, "Get new tokens")
        .about(
            "For a refresh token that has not been used. One that has ends its whole session: somebody has \
             a copy. Where the answer was lost, the same token may be sent once more within 10 s and gets \
             the same successor.",
        )
        .or(&[Code::Unauthenticated, Code::TokenExpired, Code::SessionRevoked]),
    op("AuthService.Logout", User, "Sign out")
        .about("Ends this session: its tokens and its sockets, on every gateway within a second.")
        .answers(204),
    op("AuthService.LogoutAll", User, "Sign out everywhere")
        .about("Ends every session of the caller, this one too.")
        .answers(204),
    op("AuthService.GetUserInfo", User, "Show my account").about("The account that the access token belongs to."),
    op("AuthService.ChangePassword", User, "Change the password")
        .about("All other sessions end.")
        .answers(204)
        .or(&[InvalidCredentials, ValidationFailed, TooManyAttempts]),
    op("AuthService.ListSessions", User, "List my sessions")
        .about(
            "Those that are open, newest first. There are at most 100: one more sign-in ends the session that was \
             not used for the longest time.",
        ),
    op("AuthService.RevokeSession", User, "End one of my sessions")
        .about("Its tokens and its sockets end within a second, on every gateway.")
        .answers(204),
    op("AuthService.CreateWsTicket", User, "Get a ticket for a socket")
        .about("What a browser opens `GET /ws` with, as it cannot set headers there. Good once, for 30 s.")
        .answers(201),
    op("AuthService.ListUsers", Admin, "List users").about("Newest first."),
    op("AuthService.GetUser", Admin, "Show a user")
        .about("The account with its role, and whether it is disabled."),
    op("AuthService.UpdateUser", Admin, "Change a user's role, or disable the account")
        .about("Either change ends the user's sessions within a second. The last admin stays one: 422.")
        .or(&[ValidationFailed]),
    op("ProductService.ListProducts", Anybody, "List the catalogue")
        .about("Products that are sold. Ties are ordered by id."),
    op("ProductService.SearchProducts", Anybody, "Search the catalogue").about(
        "The best first: an exact SKU, in any case and without its separators too, an exact name, then products \
         with all the words, then with some; the newest first among equals. In every script, without regard to \
         case and accents. Typing slips are forgiven (one in a word of four letters or more, two from eight), and \
         the last word may be unfinished. `total` counts all pages; so does `facets`, which is answered with \
         `facets=true`. A change is found within a second.",
    ),
    op("ProductService.GetProduct", Anybody, "Show a product")
        .about("An archived one only to an admin. Keep the `ETag`, and ask again with `If-None-Match`."),
    op("ProductService.CreateProduct", Admin, "Add a product")
        .about("It is sold from then on. Its SKU must be new.")
        .answers(201)
        .or(&[SkuTaken, ValidationFailed, RequestInProgress, IdempotencyKeyReused]),
    op("ProductService.UpdateProduct", Admin, "Change a product")
        .about(
            "Changes the fields that are given. `null` empties `description` and `attributes`, and takes \
             `category_id` and `image_url` away.",
        )
        .or(&[SkuTaken, VersionMismatch, ValidationFailed, RequestInProgress, IdempotencyKeyReused]),
    op("ProductService.ArchiveProduct", Admin, "Take a product out of the shop")
        .about(
            "It stays in the orders that have it. Again is no error; `PATCH` with `status` brings it \
                back.",
        )
        .answers(204)
        .or(&[VersionMismatch]),
    op("ProductService.AdjustStock", Admin, "Correct a stock")
        .about("Adds `delta` to what can be bought; never below zero.")
        .or(&[OutOfStock, ValidationFailed, RequestInProgress, IdempotencyKeyReused]),
    op("ProductService.BatchUpdateProducts", Admin, "Change many products")
        .about(
            "Up to 10 000 rows, in a body of up to 8 MiB. A row that breaks a rule, or names a product a \
             second time, fails alone; with `on_error: \"abort\"`, one that fails means that nothing is \
             changed and the others are `skipped`. Under an `Idempotency-Key`, rows that are `unavailable` are \
             done by sending the same batch again, and no other row is done twice.",
        )
        .or(&[ValidationFailed, RequestInProgress, IdempotencyKeyReused]),
    op("ProductService.ListCategories", Anybody, "List the categories")
        .about("By slug, with `limit` and `cursor`: their number is not bounded."),
    op("ProductService.CreateCategory", Admin, "Add a category")
        .about("Its slug must be new. Without `parent_id` it is a root.")
        .answers(201)
        .or(&[SlugTaken, ValidationFailed, RequestInProgress, IdempotencyKeyReused]),
    op("ProductService.UpdateCategory", Admin, "Change a category")
        .about("Changes the fields that are given; `parent_id: null` makes it a root.")
        .or(&[SlugTaken, ValidationFailed, RequestInProgress, IdempotencyKeyReused]),
    op("ProductService.DeleteCategory", Admin, "Remove a category")
        .about("Not while products, archived ones too, or other categories are in it.")
        .answers(204)
        .or(&[CategoryInUse]),
    op("OrderService.GetCart", User, "Show my cart").about("With the prices of this moment."),
    op("OrderService.ClearCart", User, "Empty my cart").about("An empty cart is no error.").answers(204),
    op("OrderService.AddCartItem", User, "Put a product into my cart")
        .about("Adds to its line where it is in the cart already. A cart has 100 lines at most.")
        .or(&[ProductUnavailable, RequestInProgress, ValidationFailed, IdempotencyKeyReused]),
    op("OrderService.SetCartItem", User, "Set how many of a product are in my cart")
        .about("0 removes the line.")
        .or(&[ProductUnavailable, ValidationFailed, RequestInProgress]),
    op("OrderService.RemoveCartItem", User, "Take a product out of my cart")
        .about("One that is not in it is no error.")
        .or(&[RequestInProgress]),
    op("OrderService.CreateOrder", User, "Place an order")
        .about(
            "Of `items`, at most 100 different products; without them, of the cart, which is empty \
             afterwards. The stock is held until the order is paid or its time runs out (`expires_at`). \
             With `expected_total`, an order that would cost something else is refused. What a user's unpaid \
             orders hold is bounded, in all and as a share of one product; one unit is always allowed.",
        )
        .answers(201)
        .or(&[
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
    op("OrderService.ListOrders", User, "List my orders").about("Newest first."),
    op("OrderService.GetOrder", User, "Show an order").about("My own; to an admin, any."),
    op("OrderService.ListOrderEvents", User, "Show an order's history")
        .about(
            "Every step it took, oldest first. The list is whole, with at most four entries, and `next_cursor` is \
             null. My own; to an admin, any.",
        ),
    op("OrderService.PayOrder", User, "Pay my order")
        .about("`pending` → `paid`. Only its owner pays an order.")
        .or(&[
            PaymentDeclined,
            InvalidTransition,
            OrderExpired,
            RequestInProgress,
            ValidationFailed,
            IdempotencyKeyReused,
        ]),
    op("OrderService.CancelOrder", User, "Cancel an order")
        .about(
            "The owner while it is `pending`; an admin while it is `pending` or `paid`, and then the \
             money goes back: `payment.status` is `refund_pending` until the provider has confirmed it. \
             An order that was cancelled with the same reason is answered as it is.",
        )
        .without_body()
        .or(&[InvalidTransition, OrderExpired, RequestInProgress, ValidationFailed, IdempotencyKeyReused]),
    op("OrderService.ShipOrder", Admin, "Ship an order")
        .about("`paid` → `shipped`. An order that was shipped so already is answered as it is.")
        .or(&[InvalidTransition, OrderExpired, RequestInProgress, ValidationFailed, IdempotencyKeyReused]),
    op("OrderService.CompleteOrder", User, "Say that an order has arrived")
        .about("`shipped` → `completed`. My own; an admin, any. A completed order is answered as it is.")
        .or(&[InvalidTransition, OrderExpired, RequestInProgress, IdempotencyKeyReused]),
    op("OrderService.ListOrders", Admin, "List the orders of all users")
        .about("Or of one of them. Newest first.")
        .second_route("listAllOrders"),
];

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    /// Numbers of fields in descriptor.proto, which paths to comments are made of.
    const SERVICES: i32 = 6;
    const METHODS: i32 = 2;

    /// The comment of each method of the contract, by `Service.Method`.
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
    fn rest_and_grpc_admit_the_same_callers_and_refuse_for_the_same_reasons() {
        let comments = comments();
        for operation in OPERATIONS {
            let rpc = operation.rpc;
            let (_, stated) = comments[rpc].split_once("Callers: ").expect(rpc);
            let (callers, stated) = stated.split_once(" Reasons: ").expect(rpc);
            let (reasons, _) = stated.split_once(" Repeat: ").expect(rpc);
            match operation.who {
                Nobody => assert_eq!(callers, "open.", "{rpc}"),
                Anybody => assert!(callers.starts_with("open; "), "{rpc}: {callers}"),
                User => assert!(callers.starts_with("a signed-in user, own things only"), "{rpc}: {callers}"),
                Admin => assert!(callers.contains("an admin"), "{rpc}: {callers}"),
            }
            // The status codes stand in brackets. What is not found is named by the path, in REST.
            let words =
                reasons.split(['(', ')']).step_by(2).flat_map(|part| part.split([' ', ',', ';', '.']));
            let told: HashSet<Code> =
                words.filter_map(Code::from_reason).filter(|code| *code != Code::NotFound).collect();
            assert_eq!(told, operation.codes.iter().copied().collect(), "{rpc}");
        }
    }
}
