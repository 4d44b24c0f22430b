//! The admin that the settings name.

use shoppee_proto::auth::v1::Role;
use tonic::Code::Unauthenticated;

use crate::shop::{PASSWORD, Shop, refused};

fn name_root(settings: &mut shoppee_auth::Settings) {
    settings.admin_username = Some("root".to_owned());
    settings.admin_email = Some("root@shop.example".to_owned());
    settings.admin_password = Some("the first admin's own".into());
}

#[tokio::test]
async fn is_there_once_the_service_serves_and_is_made_once() {
    let shop = Shop::open().await;
    let (one, two, three) = tokio::join!(
        shop.replica_with(name_root),
        shop.replica_with(name_root),
        shop.replica_with(name_root),
    );
    for replica in [&one, &two, &three] {
        let root = replica.tries_to_sign_in("root", "the first admin's own").await.unwrap();
        assert_eq!(root.tokens.user.unwrap().role(), Role::Admin);
    }
    let accounts: i64 = sqlx::query_scalar("select count(*) from auth.account")
        .fetch_one(&mut shop.connection().await)
        .await
        .unwrap();
    assert_eq!(accounts, 1);
}

#[tokio::test]
async fn an_account_that_exists_is_never_changed() {
    let shop = Shop::open().await;
    let root = shop.tries_to_register("ROOT", "somebody@else.example", PASSWORD).await.unwrap();
    let again = shop.replica_with(name_root).await;
    refused(
        again.tries_to_sign_in("root", "the first admin's own").await,
        Unauthenticated,
        "INVALID_CREDENTIALS",
    );
    assert_eq!(again.signs_in("root").await.tokens.user, Some(root));
}
