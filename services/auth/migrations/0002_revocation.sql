-- The transaction in which a session ended, so that a reader finds the ends whose transactions had not committed when
-- it last read. A trigger writes it: an older version of the service, which knows nothing of it, ends sessions too.
alter table auth.session add column ended_tx bigint;

create function auth.set_session_ended_tx() returns trigger language plpgsql as $$
begin
    new.ended_tx := pg_current_xact_id()::text::bigint;
    return new;
end
$$;
create trigger session_ended before insert or update of ended_at on auth.session
    for each row when (new.ended_at is not null) execute function auth.set_session_ended_tx();
update auth.session set ended_at = ended_at where ended_at is not null;
create index session_ended_tx on auth.session (ended_tx, id) where ended_tx is not null;

-- Tickets for sockets that were exchanged, by the `jti` of the ticket; kept for longer than a ticket is good.
create table auth.used_ticket (
    id uuid not null,
    expires_at timestamptz not null,
    constraint used_ticket_pkey primary key (id)
);
create index used_ticket_expiry on auth.used_ticket (expires_at);
