-- The audit log: a record of each grant, and of each act of admins and services. The table has one shape in the schemas
-- of all services (kit: audit_log.rs).
-- Its key is its own: it belongs to no user.
create table orders.audit_record (
    -- A UUIDv7 of `at`, so that the order of ids is the order of time.
    id uuid not null,
    at timestamptz not null,
    -- Kind and id, as in `admin:17`. "C" compares bytes, which costs half.
    actor text collate "C" not null,
    actor_name text,
    action text collate "C" not null,
    -- Kind and id, as in `product:42`.
    target text collate "C" not null,
    -- The fields that changed.
    before jsonb,
    after jsonb,
    request_id text,
    constraint audit_record_pkey primary key (id)
);
create index audit_record_actor on orders.audit_record (actor, id);
create index audit_record_action on orders.audit_record (action, id);
create index audit_record_target on orders.audit_record (target, id);

-- The actor of a step may be a service. The new constraint allows what the old one did.
-- squawk-ignore ban-drop-constraint
alter table orders.event drop constraint event_actor_check;
alter table orders.event add constraint event_actor_check
    check (actor in ('customer', 'admin', 'service', 'system')) not valid;
