-- Recovery in leases: a worker takes what is due, and it is due again later, doubled each time.
alter table orders.payment_attempt
    add column next_try_at timestamptz not null default now() + interval '30 seconds',
    add column tries integer not null default 0,
    -- The number of the attempt among its order's: product ignores what an earlier one asks of the hold.
    add column fence bigint not null default 0,
    add column refund_requested_at timestamptz;
alter table orders.payment_attempt drop constraint payment_attempt_state_check;
-- What was written before fits, so that it need not be read.
alter table orders.payment_attempt add constraint payment_attempt_state_check
    check (state in ('charging', 'captured', 'declined', 'abandoned', 'refunding', 'refunded', 'refund_failed'))
    not valid;
create index payment_attempt_due_idx on orders.payment_attempt (next_try_at)
    where state in ('charging', 'refunding');
create index payment_attempt_refund_failed_idx on orders.payment_attempt (user_id, order_id)
    where state = 'refund_failed';

alter table orders.stock_task
    add column tries integer not null default 0,
    add column created_at timestamptz not null default now();
create index stock_task_created_idx on orders.stock_task (created_at);

-- Paid and cancelled, and neither of these two: the refund is pending.
alter table orders.orders add column refund_failed_at timestamptz;
