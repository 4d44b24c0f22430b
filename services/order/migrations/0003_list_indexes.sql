-- A user's orders in one status, newest first; it also counts the unpaid ones, which had an index of their own.
create index orders_user_status_id_idx on orders.orders (user_id, status, id);
drop index orders.orders_pending_user_idx;
