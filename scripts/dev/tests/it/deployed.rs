//! The demo against a shop that it did not start: all it knows are addresses and the admin's password.

use crate::whole::Checkout;

#[test]
fn a_deployed_shop_is_driven_by_its_addresses() {
    let shop = Checkout::new("deployed");
    shop.succeeds("up", &["--detach", "--gateways", "2", "--no-seed"]);
    let run = shop.run_file();
    let text = |pointer| run.pointer(pointer).and_then(|text| text.as_str()).expect(pointer);
    let (one, two) = (text("/gateways/0/url"), text("/gateways/1/url"));

    let without = Checkout::new("without").with("ADMIN_PASSWORD", String::new());
    let said = without.fails("demo", &["--url", one]);
    assert_eq!(said, "ADMIN_PASSWORD is not set: admin, who ships the order, needs it");

    let wrong = Checkout::new("wrong").with("ADMIN_PASSWORD", "not this one".to_owned());
    let said = wrong.fails("demo", &["--url", one]);
    assert!(said.contains("401") && said.lines().count() == 1, "{said}");

    let elsewhere = Checkout::new("elsewhere").with("ADMIN_PASSWORD", text("/admin/password").to_owned());
    for (url, why) in [
        ("shop.example", "not the address of a shop"),
        ("http://127.0.0.1:1", "Connection refused"),
        (text("/services/auth/metrics"), "no Shoppee answers there"),
    ] {
        let said = elsewhere.fails("demo", &["--url", url]);
        assert!(said.contains(why) && said.lines().count() == 1, "{said}");
    }

    let said = elsewhere.fails("demo", &["--url", one, "--admin-user", "admin"]);
    assert!(said.contains("nothing is in stock") && said.contains("--stock"), "{said}");
    let said = elsewhere.succeeds("demo", &["--url", one, "--url", two, "--admin-user", "admin", "--stock"]);
    assert!(said.contains(&format!("REST {one}, socket {two}")), "{said}");
    assert!(said.contains("all 4 events seen"), "{said}");
    // What was created is on the shelves now, and no more is added.
    let said = elsewhere.succeeds("demo", &["--url", one, "--stock"]);
    assert!(said.contains("all 4 events seen") && !said.contains("POST /products"), "{said}");
    assert!(!said.contains(text("/admin/password")), "{said}");
}
