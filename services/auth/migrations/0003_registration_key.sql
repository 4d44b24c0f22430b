-- The idempotency key that an account was registered with, kept for a day: a registration whose answer was lost is sent
-- again with it. Of the password no fingerprint is kept: the account has its hash.
create table auth.registration_key (
    user_id bigint not null,
    key text not null,
    created_at timestamptz not null,
    constraint registration_key_pkey primary key (user_id),
    constraint registration_key_account foreign key (user_id) references auth.account (id),
    constraint registration_key_length check (char_length(key) between 1 and 255)
);
create index registration_key_age on auth.registration_key (created_at);
