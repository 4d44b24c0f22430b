use crate::product::{Attributes, Status};

use super::*;

const NOW: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

fn product(id: i64, stock: i64) -> Product {
    Product {
        id,
        sku: format!("sku-{id}"),
        name: "name".to_owned(),
        description: String::new(),
        category: None,
        price: 5,
        stock,
        status: Status::Active,
        image_url: None,
        attributes: Attributes::new(),
        version: 3,
        revision: 10,
        created_at: NOW,
        updated_at: NOW,
    }
}

fn adjustment(product_id: i64, delta: i64, key: Option<&str>) -> Adjustment {
    let key = key.map(|value| Key {
        user_id: 1,
        scope: "products.stock",
        value: value.to_owned(),
        fingerprint: format!("{product_id} {delta}").into_bytes(),
    });
    let (delta, reason) = (Delta::parse(delta).unwrap(), Reason::parse("count".to_owned()).unwrap());
    Adjustment { actor: Actor::from_setting("test"), product_id, delta, reason, key }
}

/// Returns the stock, the version and the revision, and whether it is a replay.
fn numbers(outcome: &Outcome) -> Option<(i64, i64, i64, bool)> {
    let result = outcome.as_ref().ok()?;
    Some((result.value.stock, result.value.version, result.value.revision, result.replayed))
}

#[test]
fn each_correction_follows_the_ones_before_it() {
    let adjustments =
        [adjustment(1, 5, None), adjustment(1, -9, None), adjustment(1, -6, None), adjustment(9, 1, None)];
    let decisions = Decisions::new(&adjustments, vec![product(1, 3)], &BTreeMap::new(), NOW);
    let outcomes: Vec<_> = decisions.outcomes.iter().map(numbers).collect();
    assert_eq!(outcomes, [Some((8, 4, 12, false)), None, Some((2, 5, 13, false)), None]);
    let shortage = Shortage { product_id: 1, sku: Some("sku-1".to_owned()), requested: 9, available: 8 };
    assert_eq!(decisions.outcomes[1], Err(Error::OutOfStock(vec![shortage])));
    assert_eq!(decisions.outcomes[3], Err(Error::NotFound));
    assert_eq!(decisions.versions(), [(1, 2)]);
    let quantities: Vec<i64> = decisions.movements.iter().map(|movement| movement.quantity).collect();
    assert_eq!(quantities, [5, -6]);
    assert_eq!(decisions.records.len(), 2);
}

#[test]
fn a_repeated_key_in_a_batch_has_one_effect() {
    let adjustments = [
        // A refused correction does not use up its key.
        adjustment(1, -9, Some("a")),
        adjustment(1, 5, Some("a")),
        adjustment(1, 5, Some("a")),
        adjustment(1, 6, Some("a")),
        adjustment(1, 7, Some("stored")),
        adjustment(1, 8, Some("stored")),
    ];
    let stored_key = adjustments[4].key.as_ref().unwrap();
    let response = StoredResponse {
        fingerprint: stored_key.fingerprint.clone(),
        answer: serde_json::to_vec(&product(1, 77)).unwrap(),
    };
    let stored = BTreeMap::from([(stored_key.id(), response)]);
    let decisions = Decisions::new(&adjustments, vec![product(1, 3)], &stored, NOW);
    let outcomes: Vec<_> = decisions.outcomes.iter().map(numbers).collect();
    let first = (8, 4, 12);
    assert_eq!(
        outcomes,
        [
            None,
            Some((first.0, first.1, first.2, false)),
            Some((first.0, first.1, first.2, true)),
            None,
            Some((77, 3, 10, true)),
            None
        ]
    );
    assert_eq!(decisions.outcomes[3], Err(Error::KeyReused));
    assert_eq!(decisions.outcomes[5], Err(Error::KeyReused));
    assert_eq!(decisions.answers.len(), 1);
    assert_eq!(decisions.movements.len(), 1);
}
