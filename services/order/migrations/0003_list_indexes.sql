-- A user's orders in one status, newest first.
create index orders_user_status_id_idx on orders.orders (user_id, status, id);
