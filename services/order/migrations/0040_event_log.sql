-- The events of all users as one log, for consumers that follow all of them. A position is assigned after the commit of
-- its event, by one writer at a time under the lock of event_log_head. So positions have no gap, and a lower one never
-- commits after a higher one.
create table orders.event_log (
    position bigint not null constraint event_log_pkey primary key,
    user_id bigint not null,
    seq bigint not null
);

-- The position of the newest entry: one row.
create table orders.event_log_head (
    id smallint not null default 1 constraint event_log_head_pkey primary key
        constraint event_log_head_single check (id = 1),
    position bigint not null default 0
);
insert into orders.event_log_head default values;

-- Events that the log does not have yet. A row lives for milliseconds.
create table orders.event_queue (
    user_id bigint not null,
    seq bigint not null,
    constraint event_queue_pkey primary key (user_id, seq)
);

-- A trigger fills the queue: the version before, which knows nothing of the log, may run beside this one.
create function orders.queue_events() returns trigger language plpgsql as $$
begin
    insert into orders.event_queue (user_id, seq) select user_id, seq from inserted;
    return null;
end
$$;
create trigger event_queued after insert on orders.event
    referencing new table as inserted for each statement execute function orders.queue_events();
