-- Drafts :orders recent orders that wait for payment, numbered after the written ones.
truncate history.draft;
insert into history.draft
select (select max(n) from history.entry) + n, shopper.id,
       clock_timestamp() - interval '14 minutes' * (1 - n / :orders::double precision), 'open', 2, mod(n * 17, 1000)
from generate_series(1, :orders) n
join history.shopper shopper on shopper.number = mod(n * 101, :shoppers);
