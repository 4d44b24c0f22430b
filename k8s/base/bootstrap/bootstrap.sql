-- Once a database, by a superuser or by its owner with `createrole`: each service gets a role of its own that owns its
-- schema and can touch no other.
-- psql variables: database, auth_password, product_password, order_password. Running it again changes the passwords.
do $$
begin
    if not exists (select from pg_roles where rolname = 'shoppee_auth') then create role shoppee_auth login; end if;
    if not exists (select from pg_roles where rolname = 'shoppee_product') then create role shoppee_product login; end if;
    if not exists (select from pg_roles where rolname = 'shoppee_order') then create role shoppee_order login; end if;
end
$$;
alter role shoppee_auth password :'auth_password';
alter role shoppee_product password :'product_password';
alter role shoppee_order password :'order_password';
-- Who is no superuser may give schemas to roles of its own only.
grant shoppee_auth, shoppee_product, shoppee_order to current_user;

revoke all on database :"database" from public;
grant connect on database :"database" to shoppee_auth, shoppee_product, shoppee_order;
revoke all on schema public from public;

create schema if not exists auth authorization shoppee_auth;
create schema if not exists product authorization shoppee_product;
create schema if not exists orders authorization shoppee_order;

-- Trigram operators for the search that forgives typing slips.
create extension if not exists pg_trgm with schema product;
