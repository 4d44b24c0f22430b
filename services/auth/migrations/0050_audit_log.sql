-- The audit log: a record of each grant, and of each act of admins and services. The table has one shape in the schemas
-- of all services (kit: audit_log.rs).
create table auth.audit_record (
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
create index audit_record_actor on auth.audit_record (actor, id);
create index audit_record_action on auth.audit_record (action, id);
create index audit_record_target on auth.audit_record (target, id);
