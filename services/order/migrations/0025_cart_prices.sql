-- The price of one, in minor units, that the owner of the cart was last shown; absent before that.
alter table orders.cart_line add column shown_price bigint;
