-- All words are read once more: before product.words_unread some were missed. By itself, as the migration before locks
-- the products.
insert into product.words_unread (product_id) select id from product.product;
