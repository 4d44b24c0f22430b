//! The storefront: its page, files and pictures as HTTP serves them. `scripts/check_api/storefront` uses it in a browser.

use std::collections::BTreeSet;

use http::Method;

use crate::shop::{TestShop, send};

/// More requests than the limit of anonymous callers allows in its window.
const MANY: usize = 150;

#[tokio::test(flavor = "multi_thread")]
async fn the_page_allows_its_own_files_alone_and_its_modules_exist() {
    let shop = TestShop::builder()
        .with("--storefront", "on")
        .with("--rate-limits", "anonymous=100/60s")
        .start()
        .await;
    let guest = shop.guest();
    for path in [
        "//",
        "//shop",
        "//shop?q=mug&sort=name",
        "//shop/products/1",
        "//shop/cart",
        "//admin",
        "//admin/users",
    ] {
        let page = guest.get(path).await.expect(200);
        assert_eq!(page.header("content-type"), "text/html; charset=utf-8", "{path}");
        let policy = page.header("content-security-policy");
        assert!(policy.starts_with("default-src 'none'; script-src 'self' 'sha256-"), "{policy}");
        assert!(!policy.contains("unsafe") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert_eq!(page.header("x-content-type-options"), "nosniff");
        assert_eq!(page.header("referrer-policy"), "no-referrer");
    }
    // Every module that a module imports is served, as a script.
    let pages = ["app.js", "admin/admin.js", "demo/demo.js"];
    let mut modules = BTreeSet::from(pages.map(ToOwned::to_owned));
    let mut checked = BTreeSet::new();
    while let Some(module) = modules.pop_first() {
        let file = guest.get(&format!("//shop/assets/{module}")).await.expect(200);
        assert_eq!(file.header("content-type"), "text/javascript; charset=utf-8", "{module}");
        let folder = module.rsplit_once('/').map_or("", |(folder, _)| folder);
        let imports = file.text.split("from \"").skip(1).filter_map(|rest| rest.split('"').next());
        for import in imports.filter(|import| import.starts_with('.')) {
            let path = match import.strip_prefix("../") {
                Some(path) => path.to_owned(),
                None => format!("{folder}/{}", &import[2..]).trim_start_matches('/').to_owned(),
            };
            if !checked.contains(&path) {
                modules.insert(path);
            }
        }
        checked.insert(module);
    }
    assert!(checked.len() > 25, "{checked:?}");
    guest.get("//demo").await.problem(404, "not_found");
    guest.get("//shop/assets/none.js").await.problem(404, "not_found");
    guest.get("//shop/assets/../../Cargo.toml").await.problem(404, "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_compressed_revalidated_and_not_rate_limited() {
    let shop = TestShop::builder().with("--storefront", "on").start().await;
    let guest = shop.guest();
    let path = "//shop/assets/style.css";
    let first = guest.get(path).await.expect(200);
    assert_eq!(first.header("cache-control"), "public, no-cache");
    let again = guest.request(Method::GET, path).header("if-none-match", first.header("etag"));
    send(again).await.expect(304);
    let compressed = guest.request(Method::GET, path).header("accept-encoding", "gzip");
    let compressed = compressed.send().await.expect("a response");
    assert_eq!(compressed.headers()["content-encoding"], "gzip");
    assert!(compressed.bytes().await.expect("a body").starts_with(&[0x1f, 0x8b]));

    let picture = "//shop/pictures/mug/stoneware/moss-green.svg";
    let drawn = guest.get(picture).await.expect(200);
    assert_eq!(drawn.header("content-type"), "image/svg+xml");
    assert!(drawn.header("cache-control").contains("max-age=") && drawn.text.starts_with("<svg"));
    for _ in 0..MANY {
        assert_eq!(guest.get(picture).await.expect(200).text, drawn.text);
    }
    guest.get("//shop/pictures/mug/stoneware/moss-green.png").await.problem(404, "not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_storefront_the_root_redirects_and_its_paths_do_not_exist() {
    let shop = TestShop::builder().with("--storefront", "off").start().await;
    let guest = shop.guest();
    assert_eq!(guest.get("//").await.expect(307).header("location"), "/docs");
    for path in
        ["//shop", "//shop/cart", "//shop/assets/app.js", "//shop/pictures/mug/oak/sage.svg", "//admin"]
    {
        guest.get(path).await.problem(404, "not_found");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demonstration_may_connect_to_its_control_port_alone() {
    let control = "http://127.0.0.1:20999";
    let shop =
        TestShop::builder().with("--storefront", "on").with("--demo-control-url", control).start().await;
    let guest = shop.guest();
    let policy_of =
        async |path| guest.get(path).await.expect(200).header("content-security-policy").to_owned();
    let policy = policy_of("//demo").await;
    assert!(policy.contains(&format!("connect-src 'self' {control};")), "{policy}");
    assert_eq!(policy.replace(&format!(" {control}"), ""), policy_of("//admin").await);
    guest.get("//demo/other").await.problem(404, "not_found");
}
