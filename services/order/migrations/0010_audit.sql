-- The audit that compares orders with holds and payments: where each of its passes is, and what it found.
create table orders.audit_pass (
    name text not null constraint audit_pass_pkey primary key,
    -- The last order that was looked at in the present round.
    order_id uuid not null default '00000000-0000-0000-0000-000000000000',
    began_at timestamptz not null default now(),
    -- When the last whole round ended.
    ended_at timestamptz not null default now(),
    -- Which replica looks, and until when it is left alone.
    leased_until timestamptz not null default now()
);

-- What did not fit together. Counted once it is seen a second time, as work in progress does not fit for a moment.
create table orders.audit_mismatch (
    order_id uuid not null constraint audit_mismatch_pkey primary key,
    kind text not null constraint audit_mismatch_kind_check
        check (kind in ('stock', 'paid_without_hold', 'held_without_order', 'payment')),
    detail text not null,
    seen_at timestamptz not null default clock_timestamp(),
    confirmed boolean not null default false
);
