-- Search: which words stand where in a product, and which words there are at all.
--
-- The words of a query are first looked up among all words of the catalogue, a small table however many
-- products there are: the last one is completed there, and a misspelt one corrected. Products are then found
-- by words that exist.

-- Text without the marks that would make one word of several ('tee-1', 'a/b', 'x@y').
create function product.plain(text) returns text
    language sql immutable strict parallel safe
    return translate($1, '-_/.@:&#<>', '          ');

-- A for the name and the SKU, B for the description, C for the category; each as written ('running') and, in
-- English, by its stem ('run').
alter table product.product
    add column words tsvector not null generated always as (
        setweight(to_tsvector('pg_catalog.simple', product.plain(name || ' ' || sku)), 'A')
        || setweight(to_tsvector('pg_catalog.english', product.plain(name)), 'A')
        || setweight(to_tsvector('pg_catalog.simple', product.plain(description)), 'B')
        || setweight(to_tsvector('pg_catalog.english', product.plain(description)), 'B')
        || setweight(to_tsvector('pg_catalog.simple', product.plain(category_name)), 'C')
        || setweight(to_tsvector('pg_catalog.english', product.plain(category_name)), 'C')
    ) stored;

-- A small pending list (KiB): every search reads it from end to end. Names have an index of their own, so
-- that the best matches of a common word are found without looking at the others.
create index product_words_idx on product.product using gin (words)
    with (gin_pending_list_limit = 256) where status = 'active';
create index product_name_words_idx on product.product using gin (ts_filter(words, '{a}'))
    with (gin_pending_list_limit = 256) where status = 'active';

-- Every word of names, descriptions and categories, but for those with digits in them; none is ever taken
-- out.
create table product.word (
    word text collate "C" not null,
    constraint word_pkey primary key (word)
);

create index word_similar_idx on product.word using gin (word product.gin_trgm_ops);

-- Up to which product a worker has read them. The service adds the words of products that it changes itself.
create table product.words_read (
    upto bigint not null,
    only_row boolean not null default true,
    constraint words_read_pkey primary key (only_row),
    constraint words_read_only_row_check check (only_row)
);

insert into product.words_read (upto) values (0);
