-- The outbox is keyed by user. The columns lane and id, and the table outbox_lane, serve the version before, which may
-- run beside this one; the next version drops them.
alter table orders.outbox drop constraint outbox_pkey;
alter table orders.outbox
    alter column lane drop not null,
    -- The lag is measured by the clock of the database, so the database sets it.
    alter column created_at set default clock_timestamp(),
    -- The event as it travels, so that a relay reads this table alone; the version before leaves it out.
    add column message bytea,
    -- Refusals of the user's history in Redis that are the fault of that history alone.
    add column attempts smallint not null default 0,
    -- Set once the fan-out stream has the event and the user's history does not: when the history is tried again.
    add column retry_at timestamptz,
    add constraint outbox_pkey primary key (user_id, seq);

-- A look for what waits begins at the time before which nothing waits, so that it does not pass the index entries of
-- deleted rows, which stay while an old snapshot is open.
create index outbox_created_idx on orders.outbox (created_at) where retry_at is null;
create index outbox_retry_idx on orders.outbox (retry_at) where retry_at is not null;

-- Events that the relay has given up, with the reason. The event itself stays in orders.event.
create table orders.outbox_dead_letter (
    user_id bigint not null,
    seq bigint not null,
    reason text not null,
    attempts smallint not null,
    created_at timestamptz not null,
    dead_at timestamptz not null default clock_timestamp(),
    constraint outbox_dead_letter_pkey primary key (user_id, seq)
);
