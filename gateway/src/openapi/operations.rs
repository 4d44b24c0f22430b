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
    op("AuthService.Register", "Register an account")
        .description(
            "The account is a customer's. It is not signed in yet. A repeat with the same `Idempotency-Key`, \
             username, e-mail and password gets the same response. With another password it counts as a sign-in \
             attempt.",
        )
        .status(201)
        .errors(&[UsernameTaken, EmailTaken, ValidationFailed, IdempotencyKeyReused, TooManyAttempts]),
    op("AuthService.Login", "Sign in")
        .description(
            "Begins a session. An account accepts ten attempts a minute from all unknown devices together, and \
             ten from each device that signed in before. The cookie `shoppee_device`, or the `device-token` of \
             the last response, identifies such a device until the password changes. The response is the same for \
             an unknown username and a wrong password.",
        )
        .errors(&[InvalidCredentials, AccountDisabled, ValidationFailed, TooManyAttempts]),
    op("AuthService.Refresh", "Refresh the tokens")
        .description(
            "The refresh token must not have been used before: a second use is a sign of theft and ends the \
             session. If the response was lost, the same token may be sent again within 10 s, and gets the same \
             successor.",
        )
        .errors(&[Code::Unauthenticated, Code::TokenExpired, Code::SessionRevoked]),
    op("AuthService.Logout", "Sign out")
        .description("Ends this session. Its tokens and sockets end on every gateway within a second.")
        .status(204),
    op("AuthService.LogoutAll", "Sign out everywhere")
        .description("Ends every session of the caller, including this one.")
        .status(204),
    op("AuthService.GetUserInfo", "Get my account")
        .description("Returns the account of the access token."),
    op("AuthService.ChangePassword", "Change the password")
        .description("Ends all other sessions of the account.")
        .status(204)
        .errors(&[InvalidCredentials, ValidationFailed, TooManyAttempts]),
    op("AuthService.ListSessions", "List my sessions")
        .description(
            "Returns the open sessions, newest first. A user has at most 100: a further sign-in ends the session \
             that was not used for the longest time.",
        ),
    op("AuthService.RevokeSession", "End one of my sessions")
        .description("The tokens and sockets of the session end on every gateway within a second.")
        .status(204),
    op("AuthService.CreateWsTicket", "Create a ticket for a socket")
        .description(
            "A browser opens `GET /ws` with a ticket, because it cannot set headers there. A ticket is valid \
             once, for 30 s.",
        )
        .status(201),
    op("AuthService.ListUsers", "List users")
        .description("Newest first."),
    op("AuthService.GetUser", "Get a user")
        .description("Returns the account with its role, and whether it is disabled."),
    op("AuthService.UpdateUser", "Change a user's role, or disable the account")
        .description(
            "Both changes end the user's sessions within a second. The last enabled admin cannot be demoted \
             or disabled (422).",
        )
        .errors(&[ValidationFailed]),
    op("AuthService.CreateServiceAccount", "Create a service account")
        .description(
            "A service account is the identity of a program, with the scopes that it needs. The response has its \
             `client_secret`, which is shown once and not stored. A repeat with the same `Idempotency-Key` gets \
             the same secret for 24 h. The program gets tokens with `POST /oauth/token`.",
        )
        .status(201)
        .errors(&[ValidationFailed, RequestInProgress, IdempotencyKeyReused]),
    op("AuthService.ListServiceAccounts", "List service accounts")
        .description("Newest first, including revoked ones."),
    op("AuthService.GetServiceAccount", "Get a service account")
        .description("Returns the scopes, the last use and the expiry. The secret is not shown again."),
    op("AuthService.RotateServiceAccount", "Rotate the secret of a service account")
        .description(
            "The response has the new `client_secret`. The previous one stays valid for 7 days or until the next \
             rotation: two rotations invalidate a secret that leaked. A revoked account is 404.",
        )
        .errors(&[RequestInProgress, IdempotencyKeyReused]),
    op("AuthService.RevokeServiceAccount", "Revoke a service account")
        .description("The secrets and tokens of the account end within a second, permanently. A repeat succeeds.")
        .status(204),
    op("AuditService.ListAuditRecords", "List audit records")
        .description(
            "Each grant, and each act of admins and services, of all parts of the shop, newest first. `actor` and `target` \
             are a kind and an id, as in `admin:17` and `product:42`. A page with two or more of the filters `actor`, \
             `action` and `target` may have fewer records than `limit`, or none, and still have a `next_cursor`.",
        ),
    op("ProductService.ListProducts", "List products")
        .description("Returns active products. Ties are ordered by id."),
    op("ProductService.SearchProducts", "Search products")
        .description(
            "Ranks an exact SKU first (in any case, also without separators), then an exact name, then products \
             with all words, then with some. Newer products come first among equals. Matches ignore case and \
             accents, in every script. Spelling mistakes are tolerated: one in a word of at least four letters, \
             two from eight. The last word is a prefix. `total` and `facets` (with `facets=true`) count the \
             products of all pages. A change is found within a second.",
        ),
    op("ProductService.GetProduct", "Get a product")
        .description(
            "An archived product is shown to admins only. A client that keeps the `ETag` can revalidate with \
             `If-None-Match`.",
        ),
    op("ProductService.CreateProduct", "Create a product")
        .description("The product is active, and its SKU must be new.")
        .status(201)
        .errors(&[SkuTaken, ValidationFailed, RequestInProgress, IdempotencyKeyReused]),
    op("ProductService.UpdateProduct", "Change a product")
        .description(
            "Changes the fields that are present. `null` clears `description`, `attributes`, `category_id` and \
             `image_url`.",
        )
        .errors(&[SkuTaken, VersionMismatch, ValidationFailed, RequestInProgress, IdempotencyKeyReused]),
    op("ProductService.ArchiveProduct", "Archive a product")
        .description(
            "Orders keep an archived product. A repeat succeeds. `PATCH` with `status` makes the product active \
             again.",
        )
        .status(204)
        .errors(&[VersionMismatch]),
    op("ProductService.AdjustStock", "Adjust a stock")
        .description("Adds `delta` to the available stock, which is never negative.")
        .errors(&[OutOfStock, ValidationFailed, RequestInProgress, IdempotencyKeyReused]),
    op("ProductService.ListStockChanges", "Show the ledger of a stock")
        .description(
            "Corrections, and the holds of orders; newest first, each with the stock that could be bought after it.",
        ),
    op("ProductService.BatchUpdateProducts", "Change many products")
        .description(
            "Takes up to 10 000 rows, in a body of up to 8 MiB. A row that breaks a rule fails alone, and so \
             does the second row of a product. With `on_error: \"abort\"`, one failed row leaves all products \
             unchanged, and the other rows are `skipped`. With an `Idempotency-Key`, a repeat processes only the \
             rows that were `unavailable`.",
        )
        .errors(&[ValidationFailed, RequestInProgress, IdempotencyKeyReused]),
    op("ProductService.ListCategories", "List categories")
        .description("By slug, in pages of `limit` with `cursor`: their number has no bound."),
    op("ProductService.CreateCategory", "Create a category")
        .description("The slug must be new. Without `parent_id` the category is a root.")
        .status(201)
        .errors(&[SlugTaken, ValidationFailed, RequestInProgress, IdempotencyKeyReused]),
    op("ProductService.UpdateCategory", "Change a category")
        .description("Changes the fields that are present. `parent_id: null` makes the category a root.")
        .errors(&[SlugTaken, ValidationFailed, RequestInProgress, IdempotencyKeyReused]),
    op("ProductService.DeleteCategory", "Delete a category")
        .description("A category with products, including archived ones, or with subcategories cannot be deleted.")
        .status(204)
        .errors(&[CategoryInUse]),
    op("OrderService.GetCart", "Get my cart")
        .description("The prices are the current ones."),
    op("OrderService.ClearCart", "Clear my cart")
        .description("An empty cart is not an error.").status(204),
    op("OrderService.AddCartItem", "Add a product to my cart")
        .description("Adds to the quantity of a product that is in the cart already. A cart has at most 100 lines.")
        .errors(&[ProductUnavailable, RequestInProgress, ValidationFailed, IdempotencyKeyReused]),
    op("OrderService.SetCartItem", "Set the quantity of a product in my cart")
        .description("0 removes the line.")
        .errors(&[ProductUnavailable, ValidationFailed, RequestInProgress]),
    op("OrderService.RemoveCartItem", "Remove a product from my cart")
        .description("A product that is not in the cart is not an error.")
        .errors(&[RequestInProgress]),
    op("OrderService.CreateOrder", "Place an order")
        .description(
            "Orders `items`, at most 100 different products. Without `items` it orders the cart and clears it. \
             The stock is held until the order is paid or expires (`expires_at`). With `expected_total`, an order \
             with another total is refused. A user's unpaid orders hold a limited number of units, in total and \
             of each product; one unit is always allowed.",
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
    op("OrderService.GetOrder", "Get an order")
        .description("Customers get their own orders, admins get all."),
    op("OrderService.ListOrderEvents", "List the history of an order")
        .description(
            "Returns every transition, oldest first. The list is complete, with at most four entries, and \
             `next_cursor` is null. Customers get their own orders, admins get all.",
        ),
    op("OrderService.PayOrder", "Pay my order")
        .description("`pending` → `paid`. Only the owner pays an order.")
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
            "The owner cancels a `pending` order, an admin also a `paid` one. The payment of a `paid` order is \
             refunded: `payment.status` is `refund_pending` until the provider confirms the refund. A repeat with \
             the same reason gets the order as it is.",
        )
        .optional_body()
        .errors(&[InvalidTransition, OrderExpired, RequestInProgress, ValidationFailed, IdempotencyKeyReused]),
    op("OrderService.ShipOrder", "Ship an order")
        .description("`paid` → `shipped`. A repeat with the same content gets the order as it is.")
        .errors(&[InvalidTransition, OrderExpired, RequestInProgress, ValidationFailed, IdempotencyKeyReused]),
    op("OrderService.CompleteOrder", "Complete an order")
        .description(
            "`shipped` → `completed`. Customers complete their own orders, admins all. A repeat gets the order \
             as it is.",
        )
        .errors(&[InvalidTransition, OrderExpired, RequestInProgress, IdempotencyKeyReused]),
    op("OrderService.ListOrders", "List the orders of all users")
        .description("Of all users, or of one. Newest first.")
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
