//! The initial admin of the settings.

use shoppee_proto::auth::v1::Role;
use tonic::Code::Unauthenticated;

use crate::shop::{PASSWORD, TestAuth, expect_error};

fn configure_root(settings: &mut shoppee_auth::Settings) {
    settings.admin_username = Some("root".to_owned());
    settings.admin_email = Some("root@shop.example".to_owned());
    settings.admin_password = Some("the first admin's own".into());
}

#[tokio::test]
async fn the_initial_admin_exists_when_the_service_is_ready_and_is_created_once() {
    let shop = TestAuth::start().await;
    let (one, two, three) = tokio::join!(
        shop.replica_with(configure_root),
        shop.replica_with(configure_root),
        shop.replica_with(configure_root),
    );
    for replica in [&one, &two, &three] {
        let root = replica.try_sign_in("root", "the first admin's own").await.unwrap();
        assert_eq!(root.tokens.user.unwrap().role(), Role::Admin);
    }
    let accounts: i64 = sqlx::query_scalar("select count(*) from auth.account")
        .fetch_one(&mut shop.connection().await)
        .await
        .unwrap();
    assert_eq!(accounts, 1);
}

#[tokio::test]
async fn an_existing_account_is_not_changed_by_the_initial_admin() {
    let shop = TestAuth::start().await;
    let root = shop.try_register("ROOT", "somebody@else.example", PASSWORD).await.unwrap();
    let again = shop.replica_with(configure_root).await;
    expect_error(
        again.try_sign_in("root", "the first admin's own").await,
        Unauthenticated,
        "INVALID_CREDENTIALS",
    );
    assert_eq!(again.signs_in("root").await.tokens.user, Some(root));
}
