-- Search is answered from an index in each process, which is built from product.product and follows product.change. What
-- the search in SQL needed goes.
drop trigger product_added on product.product;
drop trigger product_reworded on product.product;
drop function product.note_words();
-- With its indexes.
alter table product.product drop column words;
drop function product.plain(text);
drop table product.words_unread;
drop table product.words_read;
drop table product.word;

-- product.product.category_name and product.category.renamed stay for processes of the version before, which write them;
-- nothing reads them.
