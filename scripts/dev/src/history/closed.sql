-- Drafts :orders orders that are final or wait for the shop's next step, evenly over 400 days, the last one 20 minutes
-- ago. Four large customers have 0.6 % each; of the others a few have thousands, most a handful.
insert into history.draft
select n, user_id, created_at,
       case
           when fate = 'completed' and age < interval '1 day' then 'paid'
           when fate = 'completed' and age < interval '4 days' then 'shipped'
           when fate = 'shipped' and age < interval '1 day' then 'paid'
           when fate = 'refunded' and age < interval '1 hour' then 'paid'
           else fate
       end,
       lines, first_product
from (
    select n, age, now() - age as created_at, lines,
           floor(product * product * (select count(*) from history.product))::bigint as first_product,
           case
               when whose < 0.024 then (:customers)[1 + floor(whose / 0.006)::integer]
               when whose < 0.025
               then (:customers)[5 + floor((whose - 0.024) * 1000 * (cardinality(:customers) - 4))::integer]
               else (select id from history.shopper
                     where number = floor(shopper * shopper * :shoppers)::bigint)
           end as user_id,
           case
               when outcome < 0.70 then 'completed'
               when outcome < 0.76 then 'shipped'
               when outcome < 0.80 then 'paid'
               when outcome < 0.85 then 'refunded'
               when outcome < 0.90 then 'cancelled'
               else 'expired'
           end as fate
    from (
        select n, random() as whose, random() as shopper, random() as product, random() as outcome,
               (array[1, 1, 1, 1, 1, 1, 2, 2, 2, 3])[1 + mod(n, 10)] as lines,
               interval '20 minutes' + interval '400 days' * (1 - n / :orders::double precision) as age
        from generate_series(1, :orders) n
        offset 0
    ) random
) placed;
