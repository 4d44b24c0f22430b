-- Once a database and service, by a superuser or by its owner with `createrole`: the service gets a role of its own that
-- owns its schema and can touch no other. The services may share a database, or have one each.
-- psql variables: database, role, schema, password. Running it again changes the password.
select set_config('bootstrap.role', :'role', false), set_config('bootstrap.schema', :'schema', false);
do $$
declare
    role text := current_setting('bootstrap.role');
begin
    if not exists (select from pg_roles where rolname = role) then
        execute format('create role %I login', role);
    end if;
end
$$;
alter role :"role" password :'password';
-- Who is no superuser may give schemas to roles of its own only.
grant :"role" to current_user;

revoke all on database :"database" from public;
grant connect on database :"database" to :"role";
revoke all on schema public from public;

create schema if not exists :"schema" authorization :"role";

-- Trigram operators, for an index that migration 0003 creates and 0030 drops.
do $$
begin
    if current_setting('bootstrap.schema') = 'product' then
        create extension if not exists pg_trgm with schema product;
    end if;
end
$$;
